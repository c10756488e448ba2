"""All cross-checks of a config: what its types cannot say."""

from itertools import pairwise
from math import inf
from typing import Any

from ggcn.config import Config, ModelConfig, OptimizerConfig
from ggcn.errors import UserError


def validate(config: Config) -> None:
    """Checks all that the types cannot say; raises UserError with the first fault."""
    for fault, sentence in _faults(config):
        if fault:
            raise UserError(sentence)
    config.data.check_ranges()


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
        (
            config.model.start == "bank" and config.lanes * config.model.bank.chains < config.train.batch,
            f"model.bank.chains={config.model.bank.chains} per lane are fewer than a lane trains on; raise it",
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
    upsampler = model.upsampler
    uneven = upsampler.norm == "group" and (upsampler.width % 8 or upsampler.min_width % 8)
    blind = model.start == "hidden" and upsampler.kind == "fixed"
    return [
        (blind, "model.start=hidden needs model.upsampler.kind=convnet: a fixed up-sampler cannot read z"),
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


def _train_faults(config: Config) -> list[tuple[bool, str]]:
    """Values outside their range; NaN is outside of every one."""
    train, model = config.train, config.model
    ranges: list[tuple[str, float, float, float]] = [
        ("cluster.ranks", 1 if config.cluster.ranks is None else config.cluster.ranks, 1, inf),
        ("train.steps", train.steps, 1, inf),
        ("train.ema", train.ema, 0, 0.9999999),
        ("train.data_noise", train.data_noise, 0, 1),
        ("train.energy_l2", train.energy_l2, 0, 1e6),
        ("checkpoint.every", config.checkpoint.every, 1, inf),
        ("checkpoint.keep", config.checkpoint.keep, 1, inf),
        ("checkpoint.keep_every", config.checkpoint.keep_every, 0, inf),
        ("log.every", config.log.every, 1, inf),
        ("log.pictures_every", config.log.pictures_every, 1, inf),
        ("log.pictures", config.log.pictures, 1, inf),
        ("model.start_sd", model.start_sd, 0, 10),
        ("model.bank.chains", model.bank.chains, 1, inf),
        ("model.bank.renewal", model.bank.renewal, 0, 1),
        ("model.bank.fresh_rounds", model.bank.fresh_rounds, 1, inf),
        ("model.energy.width", model.energy.width, 1, inf),
        ("model.energy.max_width", model.energy.max_width, 1, inf),
        ("model.upsampler.hidden", model.upsampler.hidden, 1, inf),
        ("model.upsampler.width", model.upsampler.width, 1, inf),
        ("model.upsampler.min_width", model.upsampler.min_width, 1, inf),
        *_optimizer_ranges("train.energy", train.energy),
        *_optimizer_ranges("train.upsampler", train.upsampler),
    ]
    return [
        (not low <= value <= high, f"{name}={value} must lie in [{low}, {high}]")
        for name, value, low, high in ranges
    ]


def _optimizer_ranges(name: str, optimizer: OptimizerConfig) -> list[tuple[str, float, float, float]]:
    return [
        (f"{name}.lr", optimizer.lr, 0, 1e6),
        (f"{name}.beta1", optimizer.beta1, 0, 0.9999999),
        (f"{name}.beta2", optimizer.beta2, 0, 0.9999999),
        (f"{name}.clip", optimizer.clip, 0, inf),
        (f"{name}.warmup", optimizer.warmup, 0, inf),
    ]


def _choice_faults(config: Config) -> list[tuple[bool, str]]:
    choices: list[tuple[str, object, tuple[object, ...]]] = [
        ("model.start", config.model.start, ("hidden", "bank", "noise")),
        ("model.upsampler.kind", config.model.upsampler.kind, ("convnet", "fixed")),
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
