"""The schema of a run: every key, its type, its default and why, and all cross-checks.

Imports no torch, so that a login node composes and validates in an instant. Values that may differ per grid
are lists with one entry for every grid, coarsest first; a list of one entry serves all grids.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ggcn.data.config import DataConfig
from ggcn.errors import UserError


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
    """The top-down networks: hidden z to the coarsest grid, and each grid to the next."""

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
class ChainConfig:
    """Langevin chains, x <- x - a grad E(x) + sqrt(2 a T) eps, per grid."""

    steps: list[int] = field(default_factory=lambda: [8])
    """Langevin steps of a chain; the up-sampler learns what the chain does, so few are enough"""
    step_size: list[float] = field(default_factory=lambda: [1.0, 10.0])
    """Langevin step size a; the energy's gradient per pixel shrinks with the number of pixels, so a wants to
    grow with it, about size^2 / 100"""
    temperature: list[float] = field(default_factory=lambda: [1e-6])
    """T; 1 is exact Langevin, far lower ones give cleaner pictures from few steps. Noise of a step has the
    standard deviation sqrt(2 a T): 0.0045 at a = 10. The logged relative_displacement must stay well above 1"""


@dataclass
class FlowConfig:
    """How the energy learns: KL flow (maximum likelihood), or JKO flow with the Wasserstein metric."""

    gamma: list[float] = field(default_factory=lambda: [2.0, 20.0])
    """weight of the JKO term gamma/2 * mean |grad f|^2; 0 is the KL flow. The term is the cost of moving
    particles for a time gamma, so it scales like step_size; much above a chain's total time steps * step_size
    the energy flattens and the chains stand still"""
    particles: str = "samples"
    """where the JKO term is taken: samples (chain ends), data, both, or segments between the two"""


@dataclass
class ModelConfig:
    name: str = "ggcn"
    grids: list[int] = field(default_factory=lambda: [8, 32])
    """pixels along a side, coarsest first; each divides the next; the last is the image size"""
    channels: int = 3
    sigma: float = float("inf")
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


def grids(model: ModelConfig) -> list[Grid]:
    """The grids of a model, coarsest first."""
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


def validate(config: Config) -> None:
    """Checks all that the types cannot say; raises UserError with the first fault."""
    for fault, sentence in _faults(config):
        if fault:
            raise UserError(sentence)


def validate_world(config: Config, ranks: int) -> None:
    """Raises UserError when `ranks` processes cannot share the lanes equally."""
    if ranks < 1 or config.lanes % ranks:
        raise UserError(
            f"{ranks} ranks cannot share lanes={config.lanes} equally; set cluster.ranks to a divisor of {config.lanes}"
        )


def _faults(config: Config) -> list[tuple[bool, str]]:
    return [
        *_run_faults(config),
        *_model_faults(config.model),
        *_train_faults(config),
        *_choice_faults(config),
    ]


def _run_faults(config: Config) -> list[tuple[bool, str]]:
    bad_name = (
        not config.run or config.run != config.run.strip() or "/" in config.run or config.run.startswith(".")
    )
    return [
        (bad_name, f"run={config.run!r} is no folder name; use letters, digits, '-' and '_'"),
        (config.lanes < 1, f"lanes={config.lanes} must be at least 1"),
        (config.train.batch < 1, f"train.batch={config.train.batch} must be at least 1"),
        (
            config.lanes > 0 and config.train.batch % config.lanes > 0,
            f"train.batch={config.train.batch} is not a multiple of lanes={config.lanes}; change one of the two",
        ),
    ]


def _model_faults(model: ModelConfig) -> list[tuple[bool, str]]:
    sizes = model.grids
    ladder = all(fine % coarse == 0 and fine > coarse for coarse, fine in pairwise(sizes))
    powers = all(size >= 4 and size & (size - 1) == 0 for size in sizes)
    lists: dict[str, list[Any]] = {
        "model.chain.steps": model.chain.steps,
        "model.chain.step_size": model.chain.step_size,
        "model.chain.temperature": model.chain.temperature,
        "model.flow.gamma": model.flow.gamma,
    }
    return [
        (not sizes or not powers, f"model.grids={list(sizes)} must be powers of two from 4 on"),
        (not ladder, f"model.grids={list(sizes)} must grow from the coarsest to the image size"),
        (model.sigma <= 0, f"model.sigma={model.sigma} must be above 0 (inf leaves the reference out)"),
        *(
            (
                len(values) not in (1, len(sizes)),
                f"{name} has {len(values)} entries for {len(sizes)} grids; give one, or one per grid",
            )
            for name, values in lists.items()
        ),
        *(
            (any(value < 0 for value in values), f"{name}={list(values)} must not be negative")
            for name, values in lists.items()
        ),
    ]


def _train_faults(config: Config) -> list[tuple[bool, str]]:
    counts = {
        "train.steps": config.train.steps,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every": config.log.every,
        "log.pictures_every": config.log.pictures_every,
        "log.pictures": config.log.pictures,
    }
    return [
        *((value < 1, f"{name}={value} must be at least 1") for name, value in counts.items()),
        (not 0 <= config.train.ema < 1, f"train.ema={config.train.ema} must lie in [0, 1)"),
    ]


def _choice_faults(config: Config) -> list[tuple[bool, str]]:
    choices: list[tuple[str, object, tuple[object, ...]]] = [
        ("model.energy.activation", config.model.energy.activation, ("silu", "softplus")),
        ("model.upsampler.norm", config.model.upsampler.norm, ("none", "group", "lane")),
        ("model.flow.particles", config.model.flow.particles, ("samples", "data", "both", "segments")),
        ("engine.kind", config.engine.kind, ("deepspeed", "plain")),
        ("engine.zero_stage", config.engine.zero_stage, (0, 1, 2)),
        ("engine.precision", config.engine.precision, ("bf16", "fp32")),
    ]
    return [
        (value not in allowed, f"{name}={value} is none of {', '.join(map(str, allowed))}")
        for name, value, allowed in choices
    ]
