"""The schema of a run: every key with its type, default, allowed values and meaning.

Imports no torch, so that a login node composes and validates in an instant. Values that may differ per grid
are lists with one entry for every grid, coarsest first; a list of one entry serves all grids, and an empty one
is filled by a rule (ggcn/config/grids.py). The text after a field is its documentation, which
`launch.py --help-config` and docs/configuration.md show; checks of several keys together are in validation.py.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from ggcn.config.data import DataConfig
from ggcn.config.fields import choice, listed, ranged
from ggcn.config.renamed import reasons


@dataclass
class PathsConfig:
    """Where runs lie."""

    runs: str = "runs"
    """folder that holds the run directories. In this and every other path, `~` and $NAME stand for the home directory
    and for an environment variable; here the launcher must know it, in the others the ranks"""


@dataclass
class FilterConfig:
    """The fixed filters of FRAME, for model.energy.kind=frame."""

    scales: int = ranged(3, 1)
    """sizes of the image that are filtered: the image, its half, its quarter, ...; those smaller than a filter are
    left out. More scales see coarser structure"""
    orientations: int = ranged(6, 1)
    """directions of the Gabor filters, evenly spaced; more tell finer angles apart and cost in proportion"""
    weights: str = choice("both", "stationary", "position")
    """stationary: one weight per filter, for textures; position: one per filter and place, for things that
    have a place, as in aligned faces; both: their sum"""


@dataclass
class EnergyConfig:
    """The bottom-up network of each grid, whose output is f = -E."""

    kind: str = choice("convnet", "frame", own=True)
    """convnet: all layers learned; frame: fixed filters, an energy linear in its weights; MODULE:CLASS: a network of
    your own (docs/library.md)"""
    width: int = ranged(32, 1)
    """channels after the first convolution; every halving of the image doubles them. 64 learns as much in a step and
    takes 1.7 times as long on a CPU; a GPU hardly notices"""
    max_width: int = ranged(256, 1)
    """largest number of channels: where doubling stops. Bounds the parameters of large grids"""
    readout: str = choice("last", "every")
    """last: f is linear in the features of the last level; every: linear and quadratic in the features of every
    level, so that the gradient of f is a top-down pass with a skip at each level, as transport needs"""
    activation: str = choice("silu", "softplus", "relu", "leaky_relu")
    """relu and leaky_relu only where every gamma is 0: the JKO term differentiates the network twice, and their kinks
    would be missing from its gradient"""
    filters: FilterConfig = field(default_factory=FilterConfig)


@dataclass
class UpsamplerConfig:
    """The top-down side: hidden z to the coarsest grid, and each grid to the next."""

    kind: str = choice("convnet", "unet", "fixed", own=True)
    """convnet: learned layers that enlarge their input; unet, for chain.init_from=base: learned corrections of the
    chains' first images, noise included, so that they can become what the chains make of these; fixed: every pixel
    becomes a block, nothing is learned; MODULE:CLASS: a network of your own (docs/library.md)"""
    base: str = choice("plain", "fitted")
    """the part that is there before learning: plain (bilinear interpolation; from z nothing), or fitted: linear maps
    fitted to the training images at step 0, z along their principal components and each grid regressed on the one
    before (grids too large for that stay bilinear). It does not change afterwards; the networks learn the rest"""
    fit_images: int = ranged(5000, 12)
    """largest number of training images that base=fitted reads, evenly spaced; mirrored copies come on top where
    data.flip is set. More give better principal components and a longer start"""
    z_dim: int = ranged(128, 1)
    """dimensions of the hidden z ~ N(0, I)"""
    width: int = ranged(256, 1)
    """channels at the coarsest resolution, which every doubling of the image halves; of kind=unet at its finest level,
    and twice as many at each coarser one"""
    min_width: int = ranged(32, 1)
    """smallest number of channels: where halving stops"""
    norm: str = choice("none", "group", "lane")
    """none, group (GroupNorm), or lane (statistics over a lane's samples: a batch norm that does not depend
    on the number of ranks)"""


@dataclass
class ReplayBufferConfig:
    """Persistent chains, for model.chain_init=replay_buffer."""

    chains: int = ranged(64, 1)
    """chains per lane; a step takes as many as a lane has samples, at random, and puts them back. More chains are more
    diverse, and each is advanced less often"""
    reinit_prob: float = ranged(0.02, 0, 1)
    """probability that a chain is restarted from noise when it is taken: keeps the buffer from growing stale, at the
    price of some unfinished chains among the samples"""
    cold_start_factor: int = ranged(50, 1)
    """sampling after training has no buffer: its chains start from noise and run for chain.steps * cold_start_factor"""


@dataclass
class ChainConfig:
    """Langevin chains, x <- x - a grad E(x) + sqrt(2 a T) eps, per grid."""

    steps: list[int] = ranged([8], 0, inf, "[)")
    """Langevin steps of a chain; the up-sampler learns what the chain does, so few are enough. Time per training step
    grows in proportion"""
    init_from: str = choice("upsampler", "base")
    """which part of the up-samplers gives the chains' first images: upsampler (all of it) or base (the linear maps
    alone, for model.upsampler.base=fitted)"""
    every: int = ranged(1, 1)
    """training steps from one with chains to the next, for flow.objective=transport, which needs chains for the
    up-samplers alone"""
    micro_batch: int = ranged(0, 0)
    """chains that a rank advances at a time, rounded down to whole lanes but at least one: bounds the memory of
    sampling without a change to it; 0: all at once"""
    step_size: list[float] = ranged([], 0, inf, "[)")
    """Langevin step size a. By default step_size_scale * size^2: the energy's gradient per pixel shrinks with the
    number of pixels, so a must grow with it for a chain to get anywhere. Too large ones make chains oscillate"""
    time: float = ranged(0.0, 0)
    """steps * step_size of every chain, where step_size is empty; 0: from step_size_scale. With
    flow.objective=transport it is the time of training chains, and samples run for one that every checkpoint calibrates
    on training images"""
    step_size_scale: float = ranged(0.01, 0, 1_000_000)
    """Langevin step size for each pixel of a grid, where step_size is empty"""
    temperature: list[float] = ranged([], 0, inf, "[)")
    """T; 1 is exact Langevin, far lower ones give cleaner images from few steps. By default 1e-5 / a, which
    makes the noise of a step, sqrt(2 a T), 0.0045 on every grid, half a gray level of 255. The logged
    relative_displacement must stay well above 1"""
    precision: str = choice("engine", "bf16", "fp32")
    """precision of the energy's gradient in a chain: engine (as engine.precision), bf16 or fp32"""


@dataclass
class HiddenChainConfig:
    """Langevin on z under -f(U(z)) + |z|^2 / 2, before the chains of the coarsest grid: N(0, I) as the reference
    distribution in the literal sense, for model.chain_init=hidden."""

    steps: int = ranged(0, 0)
    """Langevin steps of z; 0 leaves z ~ N(0, I) where it is"""
    step_size: float = ranged(0.1, 0, 1_000_000)
    """Langevin step size of z"""
    temperature: float = ranged(1.0, 0, 1_000_000)
    """1 is exact Langevin, to which the term |z|^2 / 2 belongs; lower ones draw z towards likelier images"""


@dataclass
class FlowConfig:
    """How the energy learns: KL flow (maximum likelihood), or JKO flow with the Wasserstein metric."""

    objective: str = choice("contrastive", "transport")
    """contrastive: data against chain ends, with gamma; transport: the JKO flow as a regression of -grad E on the
    displacement from chain starts to data, without a chain"""
    decay_from: float = ranged(0.8, 0, 1, "(]")
    """transport: from this fraction of the way on, the displacement that -grad E is to equal shrinks, down to 0 at the
    data, which so become stationary points where chains can rest; 1: it does not shrink"""
    contrastive_from: int | None = ranged(None, 0)
    """transport: the step from which on every step also runs chains and lowers the energy of data against that of
    chain ends, besides the regression; by default no step does"""
    contrastive_weight: float = ranged(0.3, 0)
    """weight of that energy gap, in units of the transport cost, beside the regression's loss"""
    contrastive_margin: float = ranged(0.5, 0)
    """pairs of a datum and a chain end whose gap is below minus this, in the same units, teach nothing more: the loss
    is bounded, and chain ends that are plainly wrong do not outweigh the others"""
    start_noise: list[float] = ranged([0.05], 0, inf, "[)")
    """transport: standard deviation of the noise on chain starts, per grid, in training only, pixels in [-1, 1]: on
    finer grids it teaches the energies to remove what the coarser ones get wrong, on the coarsest it fills the
    directions that the linear map of z leaves out. Samples are best without it"""
    gamma: list[float] = ranged([], 0, inf, "[)")
    """weight of the JKO term gamma/2 * mean |grad f|^2; 0 is the KL flow. The term is the price of moving
    particles for a time gamma. By default gamma_ratio * a: much above a chain's total time steps * a the energy
    flattens and the chains stand still, near 0 the flow is maximum likelihood with its instability"""
    gamma_ratio: float = ranged(2.0, 0, 1_000_000)
    """gamma in Langevin step sizes a, where gamma is empty"""
    jko_fraction: float = ranged(1.0, 1e-9, 1)
    """fraction of each lane's particles that the JKO term is taken at, rounded up to whole ones: the term is half of
    what an energy's step costs, and a part of the particles estimates the same mean. (Rather than in every n-th step
    with n times the weight: train.energy.clip would take most of that weight away again)"""
    jko_points: str = choice("samples", "data", "both", "segments")
    """where the JKO term is taken: samples (chain ends), data, both, or segments between the two"""
    precision: str = choice("engine", "bf16", "fp32")
    """precision of the JKO term: engine (as engine.precision), bf16 or fp32"""


@dataclass
class ModelConfig:
    """Energies, chains and up-samplers; configs/model has a preset for every method."""

    name: str = "ggcn"
    """name of the method in reports and tables; changes nothing else"""
    grids: list[int] = listed(8, 32)
    """pixels along a side, powers of two from 4 on, coarsest first; the last is the image size. A model's preset has
    its own, which data.size fits to images of another size"""
    chain_init: str = choice("hidden", "replay_buffer", "data", "noise", reasons=reasons("model.chain_init"))
    """where the chains of the coarsest grid start: hidden (z ~ N(0, I) through a learned up-sampler), replay_buffer
    (persistent: where they ended when last taken), data (plain images of the batch's mean colors; without a
    batch, of colors with their mean and covariance) or noise (fresh in every step)"""
    init_std: float = ranged(0.3, 0, 10)
    """standard deviation of the noise that chains start from, for chain_init=replay_buffer and chain_init=noise"""
    replay_buffer: ReplayBufferConfig = field(default_factory=ReplayBufferConfig)
    sigma: float = ranged(inf, 0, inf, "(]")
    """standard deviation of the Gaussian reference in E(x) = -f(x) + |x|^2 / (2 sigma^2); smaller pulls images harder
    towards gray, inf leaves it out"""
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    hidden_chain: HiddenChainConfig = field(default_factory=HiddenChainConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass
class OptimizerConfig:
    """Adam, with a linear warm-up and then a schedule of the learning rate."""

    lr: float = ranged(1e-3, 0, 1_000_000)
    """learning rate after the warm-up"""
    beta1: float = ranged(0.5, 0, 0.9999999)
    """Adam's decay of the mean gradient; 0 for energies that learn from chains, usual there: samples move with every
    step, so old gradients mislead"""
    beta2: float = ranged(0.999, 0, 0.9999999)
    """Adam's decay of the mean squared gradient"""
    clip: float = ranged(1.0, 0)
    """largest norm of the gradient; 0 turns clipping off"""
    warmup: int = ranged(50, 0)
    """steps over which the learning rate rises from 0"""
    schedule: str = choice("constant", "cosine", "linear")
    """after the warm-up: constant, or cosine or linear down to lr * final_lr_ratio at step number decay_steps"""
    decay_steps: int | None = ranged(None, 1)
    """the step at which the decay ends; schedule=cosine and schedule=linear need it. It does not follow train.steps:
    that may be raised later, and must not change the steps before"""
    final_lr_ratio: float = ranged(0.0, 0, 1)
    """learning rate from decay_steps on, as a fraction of lr"""


@dataclass
class AugmentationConfig:
    """Random shifts, colors and cut-outs of coupled pairs, for flow.objective=transport, from which few images teach
    more. Start and datum of a pair are moved alike, so samples do not take after them."""

    probability: float = ranged(0.0, 0, 1)
    """fraction of the pairs that are augmented, or begun with where it is adapted; 0: none"""
    adapt_every: int = ranged(0, 0)
    """steps between adaptations of the fraction to R^2 on held-out images, where there are any: it rises while that is
    below target_ratio of R^2 on training images, and falls while it is above; 0: it stays"""
    target_ratio: float = ranged(0.7, 0, 2)
    """R^2 on held-out images over R^2 on training images that the adaptation aims at. At 0.9, which asks for nearly
    all pairs to be augmented, both R^2 and the samples are worse"""
    rate: float = ranged(0.25, 0, 10)
    """change of the fraction at an adaptation, for a ratio that is 1 below its target"""


@dataclass
class TrainConfig:
    """How long, on how much and how both networks learn."""

    steps: int = ranged(1000, 1)
    """the run ends here; raise it and the same command goes on"""
    batch: int = ranged(64, 1)
    """images of a global batch, shared by all ranks; a multiple of lanes"""
    accumulation: int = ranged(1, 1)
    """micro-batches of whole lanes that a rank cuts its share of the batch into when it learns: less memory, the
    same sums in another order; must divide lanes / ranks"""
    energy: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.0))
    upsampler: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, beta1=0.5))
    energy_l2: float = ranged(0.02, 0, 1_000_000)
    """weight of mean f(data)^2 + mean f(samples)^2, which keeps the energies near 0; 0: without it"""
    data_noise: float = ranged(0.01, 0, 1)
    """standard deviation of the noise added to data, pixels in [-1, 1]: hides 8-bit steps, 0.008, from the energy. No
    more than that, for samples learn it: at 32 px images with noise 0.01 are at a FID of 1.3 from themselves, with
    0.03 at 14"""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    ema: float = ranged(0.998, 0, 0.9999999)
    """decay per step of the averaged weights that samples are drawn with; rises to this from 0.1 in the first steps.
    Larger averages over more steps: 1 / (1 - ema)"""
    ema_energies: bool = True
    """average the energies as well as the up-samplers"""
    init_from: str = ""
    """warm start: a run directory, RUN@STEP for one of its checkpoints (else the newest), or an exported file. Every
    grid's networks that the source has in the same form begin with its weights, fitted maps included; the others begin
    anew, and the log lists both. The weights are copied into the run directory, and the source is not needed again"""
    init_weights: str = choice("averaged", "raw")
    """which weights of init_from: averaged, or raw, those that the optimizer moved (not in exported files)"""
    init_hash: str = ""
    """SHA-256 of the weights of init_from; the launcher fills it in when the run begins. Given by you, other weights
    are refused"""


@dataclass
class EngineConfig:
    """What computes a step."""

    kind: str = choice("deepspeed", "plain")
    """deepspeed, or plain: the reference engine in PyTorch alone"""
    zero_stage: int = choice(
        0,
        1,
        2,
        reasons={
            3: "would gather all weights again in every Langevin step, and fails on the JKO term's second "
            "derivatives; take 0, 1 or 2"
        },
    )
    """0: all ranks hold all state; 1, 2: optimizer state (and gradients) are sharded over the ranks, worth it for
    networks that fill the memory. Checkpoints open at any stage on any number of ranks"""
    precision: str = choice(
        "bf16",
        "fp32",
        "bf16_parameters",
        reasons={
            "fp16": "would lose the chains' small gradients below its range, and loss scaling does not reach into "
            "chains; take bf16, which has the range of fp32"
        },
    )
    """bf16: autocast over fp32 parameters; fp32; bf16_parameters: networks held in bf16 and their fp32 masters
    by the optimizer (zero_stage 1 or 2): half the memory of weights and gradients, rounded gradients"""


@dataclass
class ClusterConfig:
    """The machines of a run. All of it may change when a run is resumed. ranks is for -m local, the keys from nodes on
    are for SLURM jobs, and the others for every mode."""

    ranks: int | None = ranged(None, 1)
    """-m local: processes on this machine; by default one per GPU, and two where there is none"""
    timeout_s: int = ranged(600, 1)
    """seconds after which a collective of a step ends the run; ranks that wait for another one's long work (a save,
    sample images, an evaluation) wait for as long as it makes progress"""
    hang_s: int = ranged(540, 0)
    """seconds without a completed step after which a rank writes the stacks of all ranks to logs/ and ends the run or,
    on SLURM, has the ranks started again; below timeout_s, after which the collectives give up without saying where the
    ranks were; 0: off. Work between steps may take as long as it needs, but no single piece of it (a block of a
    file, a batch of samples) four times as long as this; until the first step is done, timeout_s if that is more"""
    straggler: float = ranged(1.5, 1)
    """ranks slower than the median rank by this factor, waiting for others aside, are named in the log"""
    nodes: Any = 1
    """-m slurm: nodes, or a list of acceptable numbers: [4, 2] starts on 4 where they are free and on 2 where not,
    decided again at each restart; lanes carry over. Every number times the ranks of a node must divide lanes"""
    spares: int = ranged(0, 0)
    """-m slurm: nodes more than the ranks use, which a job asks for; one steps in within the allocation where a node
    goes down, fails its check, or is named as the cause by two attempts"""
    ranks_per_node: int | None = ranged(None, 1)
    """-m slurm: processes on each node; by default one per GPU, and one where there is none"""
    gpus_per_node: int | None = ranged(None, 0)
    """-m slurm: GPUs of each node that a job uses; 0: it trains on CPU cores. By default what cluster.sbatch or the
    user's SBATCH_* variables ask for by --gres, --gpus, --gpus-per-node or --gpus-per-task; where they say nothing
    either, none, with a warning"""
    cpus_per_rank: int | None = ranged(None, 1)
    """cores of a rank and its loader workers; by default what SLURM gives a task, mostly one"""
    mem: str = ""
    """memory of a node as sbatch takes it, for example 64G; empty: the partition's default"""
    time_min: int = ranged(240, 1)
    """the job's time limit in minutes, not the run's: at its end a run saves and is requeued, and jobs of a few
    hours start sooner than jobs of days"""
    partition: str = ""
    """SLURM partition; empty: the cluster's default"""
    account: str = ""
    """account that the job is charged to; empty: the user's default"""
    qos: str = ""
    """SLURM quality of service; empty: the default"""
    constraint: str = ""
    """features that the nodes must have, as sbatch --constraint takes them; empty: any"""
    sbatch: list[str] = listed()
    """further options of sbatch, for example ["--exclusive", "--mail-user=me@example.org"]"""
    setup: list[str] = listed()
    """shell lines before the ranks start, for example ["module load cuda"]"""
    container: str = ""
    """command prefix that runs a command in a container, for example "apptainer exec --nv ggcn.sif"; empty: none"""
    python: str = ""
    """the interpreter of the ranks; by default this one, or python3 in a container"""
    stop_lead_s: int | None = ranged(None, 0)
    """seconds before the time limit at which a run stops to save; by default from the slowest step and the
    longest save that the run has seen"""
    max_crashes: int = ranged(3, 1)
    """crashes in a row without a new checkpoint after which a run is not started again; preemptions, time limits and
    nodes that go down do not count"""
    max_concurrent: int = ranged(16, 1)
    """-m slurm with --sweep or --search: points that run at the same time, so that others find room too"""


@dataclass
class CheckpointConfig:
    """When a run is saved and what is kept."""

    every: int = ranged(100, 1)
    """steps between checkpoints"""
    keep: int = ranged(2, 1)
    """newest checkpoints kept; 2 leaves one to fall back on when the newest is damaged"""
    keep_every: int = ranged(0, 0)
    """checkpoints at multiples of this many steps are kept for good; 0: none"""
    max_overhead: float = ranged(0.1, 0, 1)
    """largest fraction of the time since the last checkpoint for which training may wait for the next to be copied to
    host memory, by what the last one took; one that is too expensive, or due before the last one is written, waits for
    the next multiple of `every`; 0: no limit"""
    best_by: str = choice("fid", "r2_heldout")
    """the number that decides which checkpoint is kept and named in checkpoints/best: the lowest fid of the evaluations
    (evaluation.every), or the highest r2_heldout, mean over grids of R^2 on held-out images, which
    flow.objective=transport measures at every checkpoint without a sample"""
    copy_to: str = ""
    """where complete checkpoints are copied in the background, to COPY_TO/RUN: a folder, or a URL that fsspec knows
    (s3://bucket/runs with s3fs installed). A failure is tried again and never stops training, and copies of pruned
    checkpoints are removed; empty: nowhere"""


@dataclass
class GuardConfig:
    """Watches every step's numbers and takes a run that diverges back to its last healthy checkpoint, from where
    it goes on with new random numbers.

    Limits may be passed for a while, because healthy runs are restless: small ones go through bursts of 10 to 20 steps
    with an energy gap of 45, gradients of 1000 and 97 % of the pixels saturated, and recover. A run has exploded when
    it passes wide limits by powers of ten. It is lost when its signals leave for good what was usual in its own past:
    energy gap, displacement and saturation of chains, fit of the transport regression, gradient norms."""

    enabled: bool = True
    """false: nothing is watched, and a value that is not finite ends the run"""
    max_rollbacks: int = ranged(3, 0)
    """roll-backs after which the run ends: settings that diverge again and again must change. A roll-back counts until
    the run has a healthy checkpoint `window` steps beyond the divergence, or goes on with another config by --force"""
    window: int = ranged(100, 1, 100_000)
    """steps beyond a divergence for which its roll-back counts; chains that only diffuse for as many make a run
    suspect"""
    memory: int = ranged(1000, 1)
    """healthy steps over which the usual value of a signal is averaged (of those in which the signal is observed)"""
    lost_steps: int = ranged(30, 1)
    """a run is lost when two signals have been far above their usual value for this many steps, or one for half as
    many again; steps with usual values are subtracted"""
    cooldown_steps: int = ranged(25, 1)
    """steps for which a run stays suspect after a limit was passed; a checkpoint saved meanwhile is none to go
    back to"""
    max_ratio: float = ranged(100.0, 1)
    """multiple of its usual value that |energy gap| or a gradient norm may reach before it counts as an explosion"""
    energy_gap: float = ranged(50.0, 0)
    """|energy gap| up to this is no explosion; usual is 1. A loss may stay below it, since train.energy_l2 holds the
    gap below 1 / energy_l2 (50) where energies tell data from samples without fail"""
    grad_norm: float = ranged(1000.0, 0)
    """gradient norms up to this are no explosion; usual are 1 to 10"""
    weight_growth: float = ranged(1.25, 1)
    """factor by which the norm of a network's weights may grow in one step; 1.01 is usual"""
    saturation: float = ranged(0.9, 0)
    """fraction of a grid's pixels at or beyond -1 or 1 that chain ends may have above what data has"""
    severity: float = ranged(100.0, 1)
    """a run has exploded when one signal's multiples of its limit reach this product: 100 times the limit in one
    step, 10 times in two, 2 times in seven. A step within the limit takes a factor of up to 1.8 off again"""


@dataclass
class EvaluationConfig:
    """Distances of fresh samples, from averaged weights, to the training images while a run trains, in
    evaluations.jsonl and report.html. checkpoint.best_by=fid keeps the checkpoint with the lowest FID."""

    every: int = ranged(0, 0)
    """steps between evaluations, each with a checkpoint; 0: none, for the feature network comes with the extra
    [eval]"""
    count: int = ranged(256, 12)
    """samples, shared by all ranks: enough to rank the checkpoints of one run, too few to compare with other figures,
    since FID grows as samples shrink; tools/evaluate.py takes more"""
    real: int = ranged(5000, 12)
    """largest number of training images to compare with, evenly spaced; they go through the network once"""
    seed: int = 0
    """random seed of the samples, so that every evaluation draws from the same noise"""
    features: str = choice("efficientnet-lite2", "inception")
    """the network whose features are compared: efficientnet-lite2, or inception, which needs its weights"""
    weights: str = ""
    """file of Inception's weights"""
    cache: str = ""
    """folder of the training images' features; empty: ~/.cache/ggcn/features. Where it cannot be written, there is a
    warning, and they are computed again at every start"""


@dataclass
class LogConfig:
    """What a run writes while it trains."""

    every: int = ranged(10, 1)
    """steps between lines in metrics.jsonl"""
    r2_every: int = ranged(100, 0)
    """steps between measurements of R^2 on training and held-out images, for flow.objective=transport; 0: none"""
    samples_every: int = ranged(100, 1)
    """steps between sample images in samples/"""
    samples: int = ranged(16, 1)
    """samples in a row of such an image; fewer where it would have more than 8 megapixels"""
    trackers: list[str] = listed("tensorboard")
    """where metrics and sample images go besides metrics.jsonl and samples/: tensorboard (files in the run directory),
    wandb, mlflow (the extras of the same names), or my_module:MyTracker. A resumed run continues the same tracker run;
    a tracker that fails or is slow loses records, which are counted, and never holds up training"""
    project: str = ""
    """W&B project and MLflow experiment; empty: what WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say, else ggcn"""
    peak_tflops: float = ranged(0.0, 0)
    """peak of a rank's device in TFLOP/s, which the logged mfu is a share of; 0: by the GPU's name, and no mfu where
    that is not known or the device is a CPU"""
    samples_kept: int = ranged(50, 0)
    """images of this run that stay in samples/: the newest ones, and as many older ones at even distances over the
    whole run, which double when there are too many. Half a gigabyte at most, usually far less; 0: all stay. Files that
    the run did not write itself are never removed"""


@dataclass
class ProfileConfig:
    """Traces of single steps, and what is kept of memory, in profile/ of the run directory."""

    steps: list[int] = ranged([], 1)
    """the first and the last step to profile, for example [20,24], or one step; empty: none. A trace and a table of the
    operations that took longest; take steps after the first few, and one with chains"""
    ranks: list[int] = ranged([0], 0)
    """ranks that write a profile; other numbers than there are ranks are ignored"""
    stacks: bool = False
    """record the Python stack of every operation too: larger traces, slower steps while they are recorded"""
    memory_history: bool = False
    """on GPUs: remember where memory was allocated, for the snapshot that is written when memory runs out; costs some
    time in every step"""


@dataclass
class Config:
    """One run; `runs/NAME/config.yaml` holds it frozen."""

    run: str = "unnamed"
    """name of the run directory, in letters, digits, '-', '_', '.', '+' and '='"""
    seed: int = 0
    """random seed of everything a run draws: weights, data order, augmentation, chains"""
    lanes: int = ranged(8, 1)
    """fixed virtual data-parallel shards: equal slices of every global batch, the same over all restarts of a run
    whatever the machine; the number of ranks must divide it"""
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
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    typed: dict[str, Any] = field(
        default_factory=dict, compare=False, repr=False, metadata={"omegaconf_ignore": True}
    )
    """no key: the texts whose interpolations and variables this process has replaced, {dotted key: as it was typed};
    a file of the config holds those"""
