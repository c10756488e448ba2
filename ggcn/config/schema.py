"""The schema of a run: every key, its type, its default and why.

Imports no torch, so that a login node composes and validates in an instant. Values that may differ per grid
are lists with one entry for every grid, coarsest first; a list of one entry serves all grids, and an empty one
is filled by a rule.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from ggcn.config.data import DataConfig


@dataclass
class PathsConfig:
    runs: str = "runs"
    """folder that holds the run directories. In this and every other path, `~` and $NAME stand for the home directory
    and for an environment variable; here the launcher must know it, in the others the ranks"""


@dataclass
class FilterConfig:
    """The fixed filters of FRAME, for energy.kind=frame."""

    scales: int = 3
    """the image, its half, its quarter, ...; scales smaller than a filter fall away"""
    orientations: int = 6
    """of the Gabor filters"""
    weights: str = "both"
    """stationary: one weight per filter, for textures; position: one per filter and place, for things that
    have a place, as in aligned faces; both: their sum"""


@dataclass
class EnergyConfig:
    """The bottom-up network of each grid."""

    kind: str = "convnet"
    """convnet: all layers learned; frame: fixed filters, an energy linear in its weights"""
    width: int = 32
    """channels after the first convolution; every halving of the image doubles them. 64 learns as much in a step and
    takes 1.7 times as long on a CPU; a GPU hardly notices"""
    max_width: int = 256
    """channels never grow beyond this"""
    readout: str = "last"
    """last: f is linear in the features of the last level; every: linear and quadratic in the features of every
    level, so that the gradient of f is a top-down pass with a skip at each level, as transport needs"""
    activation: str = "silu"
    """silu or softplus; relu and leaky_relu only where every gamma is 0: the JKO term differentiates the
    network twice, and their kinks would be missing from its gradient"""
    filters: FilterConfig = field(default_factory=FilterConfig)


@dataclass
class UpsamplerConfig:
    """The top-down side: hidden z to the coarsest grid, and each grid to the next."""

    kind: str = "convnet"
    """convnet: learned; fixed: every pixel becomes a block, nothing is learned"""
    base: str = "plain"
    """what is there before learning: plain (bilinear interpolation; from z nothing), or fitted: linear maps fitted to
    the training pictures at step 0, z along their principal components and each grid regressed on the one before
    (grids too large for that stay bilinear). They do not change afterwards; the networks learn the rest"""
    fit_images: int = 5000
    """pictures that base=fitted looks at, at most, evenly spaced; mirrored ones besides where data.flip is set"""
    z_dim: int = 128
    """dimensions of z ~ N(0, I)"""
    width: int = 256
    """channels at the coarse end; every doubling of the image halves them"""
    min_width: int = 32
    """channels never shrink below this"""
    norm: str = "none"
    """none, group (GroupNorm), or lane (statistics over a lane's samples: a batch norm that does not depend
    on the number of ranks)"""


@dataclass
class ReplayBufferConfig:
    """Chains that live on from step to step, for chain_init=replay_buffer."""

    chains: int = 64
    """chains per lane; a step takes as many as a lane has samples, at random, and puts them back"""
    reinit_prob: float = 0.02
    """share of the chains taken that start anew from noise: keeps the buffer from growing stale, at the price
    of some unfinished ones among the samples"""
    cold_start_factor: int = 50
    """a sample that is drawn later has no buffer: its chains start from noise and run for steps * cold_start_factor"""


@dataclass
class ChainConfig:
    """Langevin chains, x <- x - a grad E(x) + sqrt(2 a T) eps, per grid."""

    steps: list[int] = field(default_factory=lambda: [8])
    """Langevin steps of a chain; the up-sampler learns what the chain does, so few are enough"""
    init_from: str = "upsampler"
    """where the chains of every grid start: upsampler (the networks' images) or base (the linear maps' alone, for
    upsampler.base=fitted)"""
    every: int = 1
    """steps from one with chains to the next, for flow.objective=transport, which needs them for the up-samplers
    alone"""
    micro_batch: int = 0
    """chains that a rank advances at a time, rounded down to whole lanes but at least one: bounds the memory of
    sampling without a change to it; 0: all at once"""
    step_size: list[float] = field(default_factory=list)
    """Langevin step size a. By default step_size_scale * size^2: the energy's gradient per pixel shrinks with the
    number of pixels, so a must grow with it for a chain to get anywhere"""
    time: float = 0.0
    """steps * step_size of every chain, where step_size is empty; 0: from step_size_scale"""
    step_size_scale: float = 0.01
    """Langevin step size for each pixel of a grid, where step_size is empty"""
    temperature: list[float] = field(default_factory=list)
    """T; 1 is exact Langevin, far lower ones give cleaner pictures from few steps. By default 1e-5 / a, which
    makes the noise of a step, sqrt(2 a T), 0.0045 on every grid, half a grey level of 255. The logged
    relative_displacement must stay well above 1"""
    precision: str = "engine"
    """of the energy's gradient in a chain: engine (as engine.precision), bf16 or fp32"""


@dataclass
class HiddenChainConfig:
    """Langevin on z under -f(U(z)) + |z|^2 / 2, before the chains of the coarsest grid: N(0, I) as the reference
    distribution in the literal sense, for chain_init=hidden."""

    steps: int = 0
    """0 leaves z ~ N(0, I) where it is"""
    step_size: float = 0.1
    temperature: float = 1.0
    """1 is exact Langevin, to which the term |z|^2 / 2 belongs"""


@dataclass
class FlowConfig:
    """How the energy learns: KL flow (maximum likelihood), or JKO flow with the Wasserstein metric."""

    objective: str = "contrastive"
    """contrastive: data against chain ends, with gamma; transport: the JKO flow as a regression of -grad E on the
    displacement from chain starts to data, without a chain"""
    decay_from: float = 0.8
    """transport: from this share of the way on, the displacement that -grad E is to equal shrinks, down to 0 at the
    data, which so become stationary points where chains can rest; 1: it does not shrink"""
    start_noise: list[float] = field(default_factory=lambda: [0.05])
    """transport: standard deviation of the noise on chain starts, per grid, in training only: on finer grids it teaches
    the energies to remove what the coarser ones get wrong, on the coarsest it fills the directions that the linear
    map of z leaves out. Samples are best without it"""
    gamma: list[float] = field(default_factory=list)
    """weight of the JKO term gamma/2 * mean |grad f|^2; 0 is the KL flow. The term is the price of moving
    particles for a time gamma. By default gamma_ratio * a: much above a chain's total time steps * a the energy
    flattens and the chains stand still, near 0 the flow is maximum likelihood with its instability"""
    gamma_ratio: float = 2.0
    """gamma in Langevin step sizes a, where gamma is empty"""
    jko_fraction: float = 1.0
    """of each lane's particles that the JKO term is taken at, rounded up to whole ones: the term is half of what an
    energy's step costs, and a part of the particles estimates the same mean. (Rather than in every n-th step with n
    times the weight: train.energy.clip would take most of that weight away again)"""
    jko_points: str = "samples"
    """where the JKO term is taken: samples (chain ends), data, both, or segments between the two"""
    precision: str = "engine"
    """of the JKO term: engine (as engine.precision), bf16 or fp32"""


@dataclass
class ModelConfig:
    name: str = "ggcn"
    grids: list[int] = field(default_factory=lambda: [8, 32])
    """pixels along a side, coarsest first; each divides the next; the last is the image size. A model's preset has its
    own, which data.size fits to images of another size"""
    chain_init: str = "hidden"
    """where the chains of the coarsest grid start: hidden (z ~ N(0, I) through a learned up-sampler), replay_buffer
    (persistent: where they ended when last taken), data (plain images of the batch's mean colours; without a
    batch, of colours with their mean and covariance) or noise (anew in every step)"""
    init_std: float = 0.3
    """standard deviation of the noise that chains start from, for chain_init=replay_buffer and chain_init=noise"""
    replay_buffer: ReplayBufferConfig = field(default_factory=ReplayBufferConfig)
    sigma: float = inf
    """standard deviation of the Gaussian reference in E(x) = -f(x) + |x|^2 / (2 sigma^2); inf leaves it out"""
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    hidden_chain: HiddenChainConfig = field(default_factory=HiddenChainConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass
class OptimizerConfig:
    """Adam, with a linear warm-up and then a schedule of the learning rate."""

    lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    clip: float = 1.0
    """largest norm of the gradient; 0 turns clipping off"""
    warmup: int = 50
    """steps over which the learning rate rises from 0"""
    schedule: str = "constant"
    """after the warm-up: constant, or cosine or linear down to lr * final_lr_ratio at step number decay_steps"""
    decay_steps: int | None = None
    """the step at which the decay ends, which a decay must be told. It does not follow train.steps: that may be
    raised later, and must not change the steps before"""
    final_lr_ratio: float = 0.0
    """share of lr that is left from decay_steps on"""


@dataclass
class TrainConfig:
    steps: int = 1000
    """the run ends here; raise it and the same command goes on"""
    batch: int = 64
    """images of a global batch, shared by all ranks"""
    accumulation: int = 1
    """micro-batches of whole lanes that a rank cuts its share of the batch into when it learns: less memory, the
    same sums in another order; must divide lanes / ranks"""
    energy: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.0))
    """beta1 0, usual for energies: samples move with every step, so old gradients mislead"""
    upsampler: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.5))
    energy_l2: float = 0.02
    """weight of mean f(data)^2 + mean f(samples)^2, which keeps the energies near 0"""
    data_noise: float = 0.01
    """standard deviation of the noise added to data, pixels in [-1, 1]: hides 8-bit steps, 0.008, from the energy. No
    more than that, for samples learn it: at 32 px pictures with noise 0.01 are at a FID of 1.3 from themselves, with
    0.03 at 14"""
    ema: float = 0.998
    """decay of the averaged weights that make pictures; rises to this from 0.1 in the first steps"""
    ema_energies: bool = True
    """average the energies as well as the up-samplers"""


@dataclass
class EngineConfig:
    kind: str = "deepspeed"
    """deepspeed, or plain: a reference engine of a page of PyTorch"""
    zero_stage: int = 0
    """0: all ranks hold all state; 1, 2: optimizer state (and gradients) are shared out, worth it for networks
    that fill the memory. Checkpoints open at any stage on any number of ranks"""
    precision: str = "bf16"
    """bf16: autocast over fp32 parameters; fp32; bf16_parameters: networks held in bf16 and their fp32 masters
    by the optimizer (zero_stage 1 or 2): half the memory of weights and gradients, rounded gradients"""


@dataclass
class ClusterConfig:
    """Where a run runs. All of it may change when a run is resumed; ranks and timeout_s serve both modes."""

    ranks: int | None = None
    """-m local: processes on this machine; by default one per GPU, and two where there is none"""
    timeout_s: int = 600
    """a collective of a step that takes longer ends the run; ranks that wait for another one's long work (a save, a
    picture, an evaluation) wait for as long as it gets on"""
    hang_s: int = 540
    """a rank that completes no step for so long leaves the stacks of all ranks in logs/ and ends the run or,
    on SLURM, has it requeued; below timeout_s, after which the collectives give up without saying where the
    ranks were; 0: off. Work between steps may take as long as it needs, but no single piece of it (a block of a
    file, a batch of samples) four times as long as this; until the first step is done, timeout_s if that is more"""
    straggler: float = 1.5
    """ranks slower than the median rank by this factor, waiting for others aside, are named"""
    nodes: Any = 1
    """-m slurm: nodes, or a list of acceptable numbers: [4, 2] starts on 4 where they are free and on 2 where not,
    anew at each restart; lanes carry over. Every number times the ranks of a node must divide lanes"""
    ranks_per_node: int | None = None
    """by default one per GPU, and one where there is none"""
    gpus_per_node: int | None = None
    """-m slurm: GPUs of each node that a job uses; 0: it trains on CPU cores. By default what cluster.sbatch or the
    user's SBATCH_* variables ask for by --gres, --gpus, --gpus-per-node or --gpus-per-task; where they say nothing
    either, none, with a warning"""
    cpus_per_rank: int | None = None
    """cores of a rank and its loader workers; by default what SLURM gives a task, mostly one"""
    mem: str = ""
    """memory of a node as sbatch takes it, for example 64G; empty: the partition's default"""
    time_min: int = 240
    """the job's time limit in minutes, not the run's: at its end a run saves and is requeued, and jobs of a few
    hours start sooner than jobs of days"""
    partition: str = ""
    """empty: the cluster's default"""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    sbatch: list[str] = field(default_factory=list)
    """further options of sbatch, for example ["--exclusive", "--mail-user=me@example.org"]"""
    setup: list[str] = field(default_factory=list)
    """shell lines before the ranks start, for example ["module load cuda"]"""
    container: str = ""
    """words that run a command in a container, for example "apptainer exec --nv ggcn.sif"; empty: none"""
    python: str = ""
    """the interpreter of the ranks; by default this one, or python3 in a container"""
    stop_lead_s: int | None = None
    """seconds before the time limit at which a run stops to save; by default from the slowest step and the
    longest save that the run has seen"""
    max_crashes: int = 3
    """a run that crashes so often in a row without a new checkpoint is not requeued any more; preemptions and
    time limits do not count"""
    max_concurrent: int = 16
    """-m slurm --sweep: points that run at the same time, so that a sweep leaves room for others"""


@dataclass
class CheckpointConfig:
    every: int = 100
    """steps between checkpoints"""
    keep: int = 2
    """newest checkpoints kept; 2 leaves one to fall back on when the newest is damaged"""
    keep_every: int = 0
    """checkpoints at multiples of this many steps are kept for good; 0: none"""
    max_overhead: float = 0.1
    """largest share of the time since the last checkpoint that saving the next may cost, by what the last one
    cost; a checkpoint that is too dear waits for the next multiple of `every`; 0: no limit"""


@dataclass
class GuardConfig:
    """Watches every step's numbers and takes a run that diverges back to its last healthy checkpoint, from where
    it goes on with new random numbers.

    Limits are wide, and may be passed for a moment, because healthy runs are restless: small ones go through
    bursts of 10 to 20 steps with a gap of 45, gradients of 1000 and 97 % of the pixels saturated, and recover. Lost
    ones pass the limits by powers of ten, or for long."""

    enabled: bool = True
    """False: nothing is judged, and a value that is not finite ends the run"""
    max_rollbacks: int = 3
    """after so many the run ends: settings that diverge again and again must change. A roll-back counts until the run
    has a healthy checkpoint `window` steps beyond the divergence, or goes on with another config by --force"""
    window: int = 100
    """steps that the running medians look back on"""
    cooldown_steps: int = 25
    """steps for which a run stays suspect after a limit was passed; a checkpoint saved meanwhile is none to go
    back to"""
    max_ratio: float = 100.0
    """multiple of its running median that |gap| or a gradient norm may reach"""
    energy_gap: float = 50.0
    """|gap| up to this is never blamed; usual is 1. (train.energy_l2 holds it below 1 / energy_l2, 50, where
    energies tell data from samples without fail.)"""
    grad_norm: float = 1000.0
    """gradient norms up to this are never blamed; usual are 1 to 10"""
    weight_growth: float = 1.25
    """factor by which the norm of a network's weights may grow in one step; 1.01 is usual"""
    saturation: float = 0.9
    """share of a grid's pixels at or beyond -1 or 1 that chain ends may have above what data has"""
    severity: float = 100.0
    """a run has diverged when one signal's multiples of its limit reach this product: 100 times the limit in one
    step, 10 times in two, 2 times in seven. A step within the limit takes a factor of up to 1.8 off again"""


@dataclass
class EvaluationConfig:
    """Distances of fresh samples, from averaged weights, to the training pictures while a run trains, in
    evaluations.jsonl and report.html. The checkpoint with the lowest FID is kept and named in checkpoints/best."""

    every: int = 0
    """steps between evaluations, each with a checkpoint; 0: none, for the network that looks at the pictures comes
    with the extra [eval]"""
    count: int = 256
    """samples, shared by all ranks: enough to rank the checkpoints of one run, too few to compare with other figures,
    since FID grows as samples shrink; tools/evaluate.py takes more"""
    real: int = 5000
    """training pictures to compare with at most, evenly spaced; they go through the network once"""
    seed: int = 0
    """of the samples, the same ones every time"""
    features: str = "efficientnet-lite2"
    """the network that looks at the pictures: efficientnet-lite2, or inception, which needs its weights"""
    weights: str = ""
    """file of Inception's weights"""
    cache: str = ""
    """folder of the training pictures' features; empty: ~/.cache/ggcn/features. Where it cannot be written, there is a
    warning, and they are made again at every start"""


@dataclass
class LogConfig:
    every: int = 10
    """steps between lines in metrics.jsonl"""
    r2_every: int = 100
    """steps between measurements of R^2 on training and held-out images, for flow.objective=transport; 0: none"""
    samples_every: int = 100
    """steps between pictures in samples/"""
    samples: int = 16
    """images in a row of a picture; fewer where it would have more than 8 megapixels"""
    samples_kept: int = 50
    """pictures of this run that stay in samples/: the newest ones, and as many older ones at even distances over the
    whole run, which double when there are too many. Half a gigabyte at most, usually far less; 0: all stay. Files that
    the run did not write itself are never removed"""


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
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    typed: dict[str, Any] = field(
        default_factory=dict, compare=False, repr=False, metadata={"omegaconf_ignore": True}
    )
    """no key: the texts whose interpolations and variables this process has replaced, {dotted key: as it was typed};
    a file of the config holds those"""
