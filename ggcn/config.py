"""The schema of a run: every key, its type, its default and why.

Imports no torch, so that a login node composes and validates in an instant. Values that may differ per grid
are lists with one entry for every grid, coarsest first; a list of one entry serves all grids, and an empty one
is filled by a rule.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from ggcn.data.config import DataConfig


@dataclass
class PathsConfig:
    runs: str = "runs"
    """folder that holds the run directories"""


@dataclass
class EnergyConfig:
    """The bottom-up network of each grid."""

    width: int = 64
    """channels after the first convolution; every halving of the image doubles them"""
    max_width: int = 256
    """channels never grow beyond this"""
    activation: str = "silu"
    """silu or softplus: the JKO term differentiates the network twice, so it must be smooth"""


@dataclass
class UpsamplerConfig:
    """The top-down side: hidden z to the coarsest grid, and each grid to the next."""

    kind: str = "convnet"
    """convnet: learned; fixed: every pixel becomes a block, nothing is learned"""
    hidden: int = 128
    """dimensions of z ~ N(0, I)"""
    width: int = 256
    """channels at the coarse end; every doubling of the image halves them"""
    min_width: int = 32
    """channels never shrink below this"""
    norm: str = "none"
    """none, group (GroupNorm), or lane (statistics over a lane's samples: a batch norm that does not depend
    on the number of ranks)"""


@dataclass
class BankConfig:
    """Chains that live on from step to step, for start=bank."""

    chains: int = 64
    """chains per lane; a step takes as many as a lane has samples, at random, and puts them back"""
    renewal: float = 0.02
    """share of the chains taken that start anew from noise: keeps the bank from growing stale, at the price
    of some unfinished ones among the samples"""
    fresh_rounds: int = 50
    """a picture has no bank: its chains start from noise and run for steps * fresh_rounds"""


@dataclass
class ChainConfig:
    """Langevin chains, x <- x - a grad E(x) + sqrt(2 a T) eps, per grid."""

    steps: list[int] = field(default_factory=lambda: [8])
    """Langevin steps of a chain; the up-sampler learns what the chain does, so few are enough"""
    step_size: list[float] = field(default_factory=list)
    """Langevin step size a. By default size^2 / 100: the energy's gradient per pixel shrinks with the number
    of pixels, so a must grow with it for a chain to get anywhere"""
    temperature: list[float] = field(default_factory=list)
    """T; 1 is exact Langevin, far lower ones give cleaner pictures from few steps. By default 1e-5 / a, which
    makes the noise of a step, sqrt(2 a T), 0.0045 on every grid, half a grey level of 255. The logged
    relative_displacement must stay well above 1"""


@dataclass
class FlowConfig:
    """How the energy learns: KL flow (maximum likelihood), or JKO flow with the Wasserstein metric."""

    gamma: list[float] = field(default_factory=list)
    """weight of the JKO term gamma/2 * mean |grad f|^2; 0 is the KL flow. The term is the price of moving
    particles for a time gamma. By default 2 a: much above a chain's total time steps * a the energy flattens
    and the chains stand still, near 0 the flow is maximum likelihood with its instability"""
    particles: str = "samples"
    """where the JKO term is taken: samples (chain ends), data, both, or segments between the two"""


@dataclass
class ModelConfig:
    name: str = "ggcn"
    grids: list[int] = field(default_factory=lambda: [8, 32])
    """pixels along a side, coarsest first; each divides the next; the last is the image size"""
    start: str = "hidden"
    """where the chains of the coarsest grid start: hidden (z ~ N(0, I) through a learned up-sampler), bank
    (persistent: where they ended when last taken) or noise (anew in every step)"""
    start_sd: float = 0.3
    """standard deviation of the noise that chains start from, for start=bank and start=noise"""
    bank: BankConfig = field(default_factory=BankConfig)
    sigma: float = inf
    """standard deviation of the Gaussian reference in E(x) = -f(x) + |x|^2 / (2 sigma^2); inf leaves it out"""
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass
class OptimizerConfig:
    """Adam with a linear warm-up."""

    lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    clip: float = 1.0
    """largest norm of the gradient; 0 turns clipping off"""
    warmup: int = 50
    """steps over which the learning rate rises from 0"""


@dataclass
class TrainConfig:
    steps: int = 1000
    """the run ends here; raise it and the same command goes on"""
    batch: int = 64
    """images of a global batch, shared by all ranks"""
    energy: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.0))
    """beta1 0, usual for energies: samples move with every step, so old gradients mislead"""
    upsampler: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.5))
    energy_l2: float = 0.02
    """weight of mean f(data)^2 + mean f(samples)^2, which keeps the energies near 0"""
    data_noise: float = 0.03
    """standard deviation of the noise added to data, pixels in [-1, 1]: hides 8-bit steps from the energy"""
    ema: float = 0.998
    """decay of the averaged weights that make pictures; rises to this from 0.1 in the first steps"""
    ema_energies: bool = True
    """average the energies as well as the up-samplers"""


@dataclass
class EngineConfig:
    kind: str = "deepspeed"
    """deepspeed, or plain: a reference engine of a page of PyTorch"""
    zero_stage: int = 0
    """0: all ranks hold all state, checkpoints open on any number of ranks; 1, 2: optimizer state (and
    gradients) are shared out, worth it for networks that fill the memory"""
    precision: str = "bf16"
    """bf16: autocast over fp32 parameters; fp32"""


@dataclass
class ClusterConfig:
    ranks: int | None = None
    """processes on this machine; by default one per GPU, and two where there is none"""
    timeout_s: int = 600
    """a collective that takes longer ends the run"""


@dataclass
class CheckpointConfig:
    every: int = 100
    """steps between checkpoints"""
    keep: int = 2
    """newest checkpoints kept; 2 leaves one to fall back on when the newest is damaged"""
    keep_every: int = 0
    """checkpoints at multiples of this many steps are kept for good; 0: none"""


@dataclass
class LogConfig:
    every: int = 10
    """steps between lines in metrics.jsonl"""
    pictures_every: int = 100
    """steps between pictures in samples/"""
    pictures: int = 16
    """images in a row of a picture"""


@dataclass
class Config:
    """One run; `runs/NAME/config.yaml` holds it frozen."""

    run: str = "unnamed"
    """name of the run directory"""
    seed: int = 0
    lanes: int = 8
    """equal slices of every global batch, fixed for the life of a run; the number of ranks must divide it"""
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class Grid:
    """The settings of one grid, with lists resolved."""

    size: int
    steps: int
    step_size: float
    temperature: float
    gamma: float


def resolve(config: Config) -> None:
    """Fills the empty lists of settings per grid by their rules, so that a frozen config holds all numbers."""
    model = config.model
    chain = model.chain
    chain.step_size = list(chain.step_size) or [size**2 / 100 for size in model.grids]
    chain.temperature = list(chain.temperature) or [1e-5 / a if a else 0.0 for a in chain.step_size]
    model.flow.gamma = list(model.flow.gamma) or [2 * a for a in chain.step_size]


def grids(model: ModelConfig) -> list[Grid]:
    """The grids of a resolved model, coarsest first."""
    count = len(model.grids)
    chain = model.chain
    columns: list[list[Any]] = [
        model.grids,
        chain.steps,
        chain.step_size,
        chain.temperature,
        model.flow.gamma,
    ]
    return [Grid(*row) for row in zip(*(_per_grid(column, count) for column in columns), strict=True)]


def _per_grid(values: list[Any], count: int) -> list[Any]:
    return list(values) * count if len(values) == 1 else list(values)
