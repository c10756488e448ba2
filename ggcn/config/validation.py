"""All cross-checks of a config: what its types cannot say."""

import re
from importlib.util import find_spec
from itertools import pairwise
from math import inf
from typing import Any

from ggcn.config.schema import Config, GuardConfig, ModelConfig, OptimizerConfig
from ggcn.errors import UserError

SCHEDULES = ("constant", "cosine", "linear")
SMOOTH = ("silu", "softplus")
ACTIVATIONS = (*SMOOTH, "relu", "leaky_relu")


def validate(config: Config) -> None:
    """Checks all that the types cannot say; raises UserError with the first fault."""
    for fault, sentence in _faults(config):
        if fault:
            raise UserError(sentence)
    config.data.check_ranges()


NAME = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9_+=.-]*")
LONGEST_NAME = 200


def validate_name(run: str) -> None:
    """Raises UserError unless a run may have this name: SLURM, shells and every file system take such names."""
    if not NAME.fullmatch(run) or len(run) > LONGEST_NAME:
        shown = run if len(run) <= LONGEST_NAME else f"{run[:20]}... ({len(run)} characters)"
        several = "; several names need --sweep over another key" if "," in run else ""
        raise UserError(
            f"run={shown} is no folder name; use up to {LONGEST_NAME} letters (a-z, A-Z), digits, '-', '_', '.', '+' "
            f"and '=', not '-' or '.' first{several}"
        )


def acceptable_nodes(config: Config) -> list[int]:
    """cluster.nodes as a list, largest first. Raises UserError unless it holds whole numbers from 1 on."""
    wanted = config.cluster.nodes
    sizes = wanted if isinstance(wanted, list) else [wanted]
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise UserError(f"cluster.nodes={wanted} must be a number of nodes, or a list of some as in [4,2]")
    return sorted(set(sizes), reverse=True)


def validate_packages(config: Config) -> None:
    """Raises UserError when this Python lacks what training with `config` needs beyond the project's own packages."""
    names = ("torchmetrics", "efficientnet_lite_pytorch") if config.evaluation.every else ()
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"evaluation.every={config.evaluation.every} needs {', '.join(missing)}; pip install 'ggcn[eval]', or set "
            "it to 0"
        )


def validate_world(config: Config, ranks: int) -> None:
    """Raises UserError when `ranks` processes cannot share the lanes equally."""
    if ranks < 1 or config.lanes % ranks:
        raise UserError(
            f"{ranks} ranks cannot share lanes={config.lanes} equally; set cluster.ranks to a divisor of {config.lanes}"
        )
    share = config.lanes // ranks
    if share % config.train.accumulation:
        raise UserError(
            f"train.accumulation={config.train.accumulation} cannot cut the {share} lanes of each of {ranks} ranks "
            f"into equal micro-batches; set it to a divisor of {share}"
        )


def _faults(config: Config) -> list[tuple[bool, str]]:
    return [
        *_run_faults(config),
        *_model_faults(config.model),
        *_train_faults(config),
        *_evaluation_faults(config),
        *_cluster_faults(config),
        *_engine_faults(config),
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
        (
            config.model.chain_init == "replay_buffer"
            and config.lanes * config.model.replay_buffer.chains < config.train.batch,
            f"model.replay_buffer.chains={config.model.replay_buffer.chains} per lane are fewer than a lane trains on; "
            "raise it",
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
        "model.flow.start_noise": model.flow.start_noise,
    }
    upsampler = model.upsampler
    uneven = upsampler.norm == "group" and (upsampler.width % 8 or upsampler.min_width % 8)
    twice = model.flow.objective == "transport" or any(model.flow.gamma)
    kinked = model.energy.kind == "convnet" and model.energy.activation not in SMOOTH and twice
    homeless = model.hidden_chain.steps > 0 and model.chain_init != "hidden"
    blind = model.chain_init == "hidden" and upsampler.kind == "fixed"
    transport, linear = model.flow.objective == "transport", upsampler.base == "fitted" and not blind
    return [
        (
            transport and (model.chain_init != "hidden" or not linear),
            "model.flow.objective=transport couples the linear maps' images with data; set model.chain_init=hidden and "
            "model.upsampler.base=fitted",
        ),
        (
            transport and model.energy.kind != "convnet",
            f"model.energy.kind={model.energy.kind} is for model.flow.objective=contrastive; transport needs convnet",
        ),
        (
            model.chain.init_from == "base" and (model.chain_init != "hidden" or not linear),
            "model.chain.init_from=base needs model.chain_init=hidden and model.upsampler.base=fitted",
        ),
        (
            model.chain.every > 1 and not transport,
            f"model.chain.every={model.chain.every} must be 1: only model.flow.objective=transport learns without "
            "chains",
        ),
        (
            not 0 < model.flow.decay_from <= 1,
            f"model.flow.decay_from={model.flow.decay_from} must lie in (0, 1]",
        ),
        (
            blind,
            "model.chain_init=hidden needs model.upsampler.kind=convnet: a fixed up-sampler cannot read z",
        ),
        (
            homeless,
            f"model.hidden_chain.steps={model.hidden_chain.steps} moves z, and model.chain_init={model.chain_init} has "
            "none; set one of them: model.chain_init=hidden, or steps to 0",
        ),
        (
            kinked,
            f"model.energy.activation={model.energy.activation} has kinks and cannot be differentiated twice, as the "
            f"JKO term must; take {' or '.join(SMOOTH)}, or model.flow.gamma=[0.0]",
        ),
        (
            bool(uneven),
            "model.upsampler.norm=group needs model.upsampler.width and min_width in multiples of 8",
        ),
        (not sizes or not powers, f"model.grids={list(sizes)} must be powers of two from 4 on"),
        (not ladder, f"model.grids={list(sizes)} must grow from the coarsest to the image size"),
        (not model.sigma > 0, f"model.sigma={model.sigma} must be above 0 (inf leaves the reference out)"),
        *(
            (
                len(values) not in (1, len(sizes)),
                f"{name} has {len(values)} entries for {len(sizes)} grids; give one, or one per grid",
            )
            for name, values in lists.items()
        ),
        *(
            (
                not all(0 <= value < inf for value in values),
                f"{name}={list(values)} must be finite and not negative",
            )
            for name, values in lists.items()
        ),
    ]


def _engine_faults(config: Config) -> list[tuple[bool, str]]:
    """What DeepSpeed would accept and get wrong or slow."""
    engine, halved = config.engine, config.engine.precision == "bf16_parameters"
    optimizers = {"train.energy": config.train.energy, "train.upsampler": config.train.upsampler}
    return [
        (
            engine.zero_stage == 3,
            "engine.zero_stage=3 would gather all weights anew in every Langevin step, and fails on the JKO term's "
            "second derivatives; take 0, 1 or 2",
        ),
        (
            engine.precision == "fp16",
            "engine.precision=fp16 would lose the chains' small gradients below its range, and loss scaling does not "
            "reach into chains; take bf16, which has the range of fp32",
        ),
        (
            halved and "fp32" in (config.model.chain.precision, config.model.flow.precision),
            "engine.precision=bf16_parameters leaves no fp32 weights to compute with; leave model.chain.precision and "
            "model.flow.precision at engine",
        ),
        (
            halved and (engine.kind != "deepspeed" or engine.zero_stage == 0),
            "engine.precision=bf16_parameters needs engine.kind=deepspeed and engine.zero_stage=1 or 2, whose "
            "optimizer keeps fp32 masters by parameter; at stage 0 take bf16",
        ),
        *(
            (
                optimizer.schedule in ("cosine", "linear") and optimizer.decay_steps is None,
                f"{name}.schedule={optimizer.schedule} needs {name}.decay_steps, the step at which the decay ends",
            )
            for name, optimizer in optimizers.items()
        ),
        (
            config.train.accumulation < 1 or config.lanes % max(config.train.accumulation, 1) > 0,
            f"train.accumulation={config.train.accumulation} must divide lanes={config.lanes}: micro-batches hold "
            "whole lanes",
        ),
    ]


def _cluster_faults(config: Config) -> list[tuple[bool, str]]:
    cluster = config.cluster
    acceptable_nodes(config)
    ranges: list[tuple[str, float, float, float]] = [
        ("timeout_s", cluster.timeout_s, 1, inf),
        ("hang_s", cluster.hang_s, 0, inf),
        ("straggler", cluster.straggler, 1, inf),
        ("ranks_per_node", 1 if cluster.ranks_per_node is None else cluster.ranks_per_node, 1, inf),
        ("gpus_per_node", cluster.gpus_per_node or 0, 0, inf),
        ("cpus_per_rank", 1 if cluster.cpus_per_rank is None else cluster.cpus_per_rank, 1, inf),
        ("time_min", cluster.time_min, 1, inf),
        (
            "stop_lead_s",
            0 if cluster.stop_lead_s is None else cluster.stop_lead_s,
            0,
            60 * cluster.time_min - 1,
        ),
        ("max_crashes", cluster.max_crashes, 1, inf),
        ("max_concurrent", cluster.max_concurrent, 1, inf),
    ]
    return [
        *(
            (not low <= value <= high, f"cluster.{name}={value} must lie in [{low}, {high}]")
            for name, value, low, high in ranges
        ),
        (
            cluster.hang_s >= cluster.timeout_s,
            f"cluster.hang_s={cluster.hang_s} must be below cluster.timeout_s={cluster.timeout_s}, or the collectives "
            "give up before the stacks are written; raise timeout_s, or set hang_s=0 to go without",
        ),
        *(
            (
                not option.startswith("-"),
                f"cluster.sbatch holds {option!r}; its entries look like --option=value",
            )
            for option in cluster.sbatch
        ),
    ]


def _train_faults(config: Config) -> list[tuple[bool, str]]:
    """Values outside their range; NaN is outside of every one."""
    train, model = config.train, config.model
    ranges: list[tuple[str, float, float, float]] = [
        ("cluster.ranks", 1 if config.cluster.ranks is None else config.cluster.ranks, 1, inf),
        ("train.steps", train.steps, 1, inf),
        ("train.ema", train.ema, 0, 0.9999999),
        ("train.data_noise", train.data_noise, 0, 1),
        ("model.chain.every", model.chain.every, 1, inf),
        ("model.chain.time", model.chain.time, 0, inf),
        ("log.r2_every", config.log.r2_every, 0, inf),
        ("train.energy_l2", train.energy_l2, 0, 1e6),
        ("checkpoint.every", config.checkpoint.every, 1, inf),
        ("checkpoint.max_overhead", config.checkpoint.max_overhead, 0, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1, inf),
        ("checkpoint.keep_every", config.checkpoint.keep_every, 0, inf),
        *_guard_ranges(config.guard),
        ("evaluation.every", config.evaluation.every, 0, inf),
        ("evaluation.count", config.evaluation.count, 12, inf),
        ("evaluation.real", config.evaluation.real, 12, inf),
        ("log.every", config.log.every, 1, inf),
        ("log.samples_every", config.log.samples_every, 1, inf),
        ("log.samples", config.log.samples, 1, inf),
        ("log.samples_kept", config.log.samples_kept, 0, inf),
        ("model.init_std", model.init_std, 0, 10),
        ("model.chain.step_size_scale", model.chain.step_size_scale, 0, 1e6),
        ("model.flow.gamma_ratio", model.flow.gamma_ratio, 0, 1e6),
        ("model.flow.jko_fraction", model.flow.jko_fraction, 1e-9, 1),
        ("model.chain.micro_batch", model.chain.micro_batch, 0, inf),
        ("model.replay_buffer.chains", model.replay_buffer.chains, 1, inf),
        ("model.replay_buffer.reinit_prob", model.replay_buffer.reinit_prob, 0, 1),
        ("model.replay_buffer.cold_start_factor", model.replay_buffer.cold_start_factor, 1, inf),
        ("model.hidden_chain.steps", model.hidden_chain.steps, 0, inf),
        ("model.hidden_chain.step_size", model.hidden_chain.step_size, 0, 1e6),
        ("model.hidden_chain.temperature", model.hidden_chain.temperature, 0, 1e6),
        ("model.energy.filters.scales", model.energy.filters.scales, 1, inf),
        ("model.energy.filters.orientations", model.energy.filters.orientations, 1, inf),
        ("model.energy.width", model.energy.width, 1, inf),
        ("model.energy.max_width", model.energy.max_width, 1, inf),
        ("model.upsampler.fit_images", model.upsampler.fit_images, 12, inf),
        ("model.upsampler.z_dim", model.upsampler.z_dim, 1, inf),
        ("model.upsampler.width", model.upsampler.width, 1, inf),
        ("model.upsampler.min_width", model.upsampler.min_width, 1, inf),
        *_optimizer_ranges("train.energy", train.energy),
        *_optimizer_ranges("train.upsampler", train.upsampler),
    ]
    return [
        (not low <= value <= high, f"{name}={value} must lie in [{low}, {high}]")
        for name, value, low, high in ranges
    ]


def _evaluation_faults(config: Config) -> list[tuple[bool, str]]:
    told = config.evaluation
    if not told.every:
        return []
    inception = told.features == "inception"
    return [
        (
            not config.data.shards,
            f"evaluation.every={told.every} compares samples with the pictures of data.shards, and a mixture is none; "
            "set evaluation.every=0 and use tools/evaluate.py --data SHARDS",
        ),
        (
            inception != bool(told.weights),
            f"evaluation.features={told.features} with evaluation.weights={told.weights!r}: inception needs the file "
            "of its weights, and the others bring theirs",
        ),
    ]


def _guard_ranges(guard: GuardConfig) -> list[tuple[str, float, float, float]]:
    return [
        ("guard.max_rollbacks", guard.max_rollbacks, 0, inf),
        ("guard.window", guard.window, 1, 100_000),
        ("guard.cooldown_steps", guard.cooldown_steps, 1, inf),
        ("guard.max_ratio", guard.max_ratio, 1, inf),
        ("guard.energy_gap", guard.energy_gap, 0, inf),
        ("guard.grad_norm", guard.grad_norm, 0, inf),
        ("guard.weight_growth", guard.weight_growth, 1, inf),
        ("guard.saturation", guard.saturation, 0, inf),
        ("guard.severity", guard.severity, 1, inf),
    ]


def _optimizer_ranges(name: str, optimizer: OptimizerConfig) -> list[tuple[str, float, float, float]]:
    return [
        (f"{name}.lr", optimizer.lr, 0, 1e6),
        (f"{name}.beta1", optimizer.beta1, 0, 0.9999999),
        (f"{name}.beta2", optimizer.beta2, 0, 0.9999999),
        (f"{name}.clip", optimizer.clip, 0, inf),
        (f"{name}.warmup", optimizer.warmup, 0, inf),
        (f"{name}.final_lr_ratio", optimizer.final_lr_ratio, 0, 1),
        (f"{name}.decay_steps", 1 if optimizer.decay_steps is None else optimizer.decay_steps, 1, inf),
    ]


def _choice_faults(config: Config) -> list[tuple[bool, str]]:
    choices: list[tuple[str, object, tuple[object, ...]]] = [
        ("model.chain_init", config.model.chain_init, ("hidden", "replay_buffer", "data", "noise")),
        ("model.upsampler.kind", config.model.upsampler.kind, ("convnet", "fixed")),
        ("model.energy.kind", config.model.energy.kind, ("convnet", "frame")),
        ("model.energy.activation", config.model.energy.activation, ACTIVATIONS),
        (
            "model.energy.filters.weights",
            config.model.energy.filters.weights,
            ("both", "stationary", "position"),
        ),
        ("model.chain.precision", config.model.chain.precision, ("engine", "bf16", "fp32")),
        ("model.flow.precision", config.model.flow.precision, ("engine", "bf16", "fp32")),
        ("model.upsampler.base", config.model.upsampler.base, ("plain", "fitted")),
        ("model.upsampler.norm", config.model.upsampler.norm, ("none", "group", "lane")),
        ("model.flow.objective", config.model.flow.objective, ("contrastive", "transport")),
        ("model.energy.readout", config.model.energy.readout, ("last", "every")),
        ("model.chain.init_from", config.model.chain.init_from, ("upsampler", "base")),
        ("model.flow.jko_points", config.model.flow.jko_points, ("samples", "data", "both", "segments")),
        ("evaluation.features", config.evaluation.features, ("efficientnet-lite2", "inception")),
        ("engine.kind", config.engine.kind, ("deepspeed", "plain")),
        ("engine.zero_stage", config.engine.zero_stage, (0, 1, 2)),
        ("engine.precision", config.engine.precision, ("bf16", "fp32", "bf16_parameters")),
        ("train.energy.schedule", config.train.energy.schedule, SCHEDULES),
        ("train.upsampler.schedule", config.train.upsampler.schedule, SCHEDULES),
    ]
    return [
        (
            value not in allowed,
            f"{name}={value} is none of {', '.join(map(str, allowed))}"
            + ("; --sweep runs several of them" if "," in str(value) else ""),
        )
        for name, value, allowed in choices
    ]
