"""Checks of a config: every value against its field, then all that concerns several keys together."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from ggcn.config.fields import faults
from ggcn.config.schema import Config, ModelConfig
from ggcn.console import command_line
from ggcn.errors import UserError

SMOOTH = ("silu", "softplus")
"""activations that can be differentiated twice"""
TRACKERS = ("tensorboard", "wandb", "mlflow")
"""trackers that are known by name"""
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""module:class"""
NAME = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9_+=.-]*")
LONGEST_NAME = 200


def validate(config: Config) -> None:
    """Raises UserError with the first fault of a config: a value that its field does not allow, or values that do not
    go together."""
    validate_name(config.run)
    for sentence in faults(config):
        raise UserError(sentence)
    acceptable_nodes(config)
    for sentence in _conflicts(config):
        raise UserError(sentence)
    config.data.check_ranges()


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
    nodes = config.cluster.nodes
    sizes = nodes if isinstance(nodes, list) else [nodes]
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise UserError(f"cluster.nodes={nodes} must be a number of nodes, or a list of numbers as in [4,2]")
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
    for tracker in config.log.trackers:
        module = tracker.partition(":")[0].partition(".")[0]
        if tracker != "tensorboard" and find_spec(module) is None:
            install = (
                f"pip install 'ggcn[{tracker}]'" if tracker in TRACKERS else "add its folder to PYTHONPATH"
            )
            raise UserError(
                f"log.trackers={config.log.trackers} needs {module}; {install}, or leave {tracker} out"
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


def _conflicts(config: Config) -> Iterator[str]:
    """A sentence for everything that does not go together."""
    yield from _batch_conflicts(config)
    yield from _grid_conflicts(config.model)
    yield from _chain_conflicts(config.model)
    yield from _network_conflicts(config.model)
    yield from _evaluation_conflicts(config)
    if config.checkpoint.best_by == "r2_heldout" and config.model.flow.objective != "transport":
        yield (
            f"checkpoint.best_by=r2_heldout needs model.flow.objective=transport: {config.model.flow.objective} has no "
            "regression to measure; set checkpoint.best_by=fid"
        )
    yield from _cluster_conflicts(config)
    yield from _precision_conflicts(config)
    yield from _schedule_conflicts(config)
    yield from _log_conflicts(config)


def _log_conflicts(config: Config) -> Iterator[str]:
    for tracker in config.log.trackers:
        if tracker not in TRACKERS and not CLASS.fullmatch(tracker):
            yield (
                f"log.trackers={config.log.trackers} has the unknown entry {tracker}; known are {', '.join(TRACKERS)}, "
                "or a class of yours as my_module:MyTracker"
            )
    steps = config.profile.steps
    if len(steps) > 2 or steps != sorted(steps):
        yield f"profile.steps={steps} must be the first and the last step to profile, as in [20,24], or one step"


def _batch_conflicts(config: Config) -> Iterator[str]:
    lanes, train, chains = config.lanes, config.train, config.model.replay_buffer.chains
    if train.batch % lanes:
        yield f"train.batch={train.batch} is not a multiple of lanes={lanes}; change one of the two"
    if lanes % train.accumulation:
        yield (
            f"train.accumulation={train.accumulation} must divide lanes={lanes}: micro-batches hold whole lanes"
        )
    if config.model.chain_init == "replay_buffer" and lanes * chains < train.batch:
        yield f"model.replay_buffer.chains={chains} per lane are fewer than a lane trains on; raise it"


def _grid_conflicts(model: ModelConfig) -> Iterator[str]:
    sizes = model.grids
    if not sizes or any(size < 4 or size & (size - 1) for size in sizes):
        yield f"model.grids={list(sizes)} must be powers of two from 4 on"
    if any(fine <= coarse for coarse, fine in pairwise(sizes)):
        yield f"model.grids={list(sizes)} must grow from the coarsest to the image size"
    per_grid: dict[str, list[Any]] = {
        "model.chain.steps": model.chain.steps,
        "model.chain.step_size": model.chain.step_size,
        "model.chain.temperature": model.chain.temperature,
        "model.flow.gamma": model.flow.gamma,
        "model.flow.start_noise": model.flow.start_noise,
    }
    for name, values in per_grid.items():
        if len(values) not in (1, len(sizes)):
            yield f"{name} has {len(values)} entries for {len(sizes)} grids; give one, or one per grid"


def _chain_conflicts(model: ModelConfig) -> Iterator[str]:
    """Of where chains start, what moves them and what they are for."""
    upsampler, chain, hidden_chain = model.upsampler, model.chain, model.hidden_chain
    transport, hidden = model.flow.objective == "transport", model.chain_init == "hidden"
    fitted = hidden and upsampler.base == "fitted" and upsampler.kind != "fixed"
    if transport and not fitted:
        yield (
            "model.flow.objective=transport couples the linear maps' images with data; set model.chain_init=hidden and "
            "model.upsampler.base=fitted"
        )
    if chain.init_from == "base" and not fitted:
        yield "model.chain.init_from=base needs model.chain_init=hidden and model.upsampler.base=fitted"
    if upsampler.kind == "unet" and chain.init_from != "base":
        yield "model.upsampler.kind=unet corrects the linear maps' images; set model.chain.init_from=base"
    if chain.every > 1 and not transport:
        yield (
            f"model.chain.every={chain.every} must be 1: only model.flow.objective=transport learns without chains"
        )
    if hidden and upsampler.kind == "fixed":
        yield "model.chain_init=hidden needs model.upsampler.kind=convnet: a fixed up-sampler cannot read z"
    if hidden_chain.steps and not hidden:
        yield (
            f"model.hidden_chain.steps={hidden_chain.steps} moves z, and model.chain_init={model.chain_init} has none; "
            "set one of them: model.chain_init=hidden, or steps to 0"
        )


def _network_conflicts(model: ModelConfig) -> Iterator[str]:
    energy, upsampler = model.energy, model.upsampler
    transport = model.flow.objective == "transport"
    if transport and energy.kind == "frame":
        yield (
            f"model.energy.kind={energy.kind} is for model.flow.objective=contrastive; transport needs convnet, or a "
            "network of your own"
        )
    differentiated_twice = energy.kind == "convnet" and (transport or any(model.flow.gamma))
    if differentiated_twice and energy.activation not in SMOOTH:
        yield (
            f"model.energy.activation={energy.activation} has kinks and cannot be differentiated twice, as the JKO "
            f"term must; take {' or '.join(SMOOTH)}, or model.flow.gamma=[0.0]"
        )
    if upsampler.norm != "none" and upsampler.kind == "unet":
        yield (
            f"model.upsampler.norm={upsampler.norm} is for model.upsampler.kind=convnet; model.upsampler.kind=unet has "
            "no normalisation"
        )
    if upsampler.norm == "group" and (upsampler.width % 8 or upsampler.min_width % 8):
        yield "model.upsampler.norm=group needs model.upsampler.width and min_width in multiples of 8"


def _evaluation_conflicts(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if not evaluation.every:
        return
    if not config.data.shards:
        yield (
            f"evaluation.every={evaluation.every} compares samples with the images of data.shards, and a mixture is "
            f"none; set evaluation.every=0 and use `{command_line('evaluate')} RUN --data SHARDS`"
        )
    if (evaluation.features == "inception") != bool(evaluation.weights):
        yield (
            f"evaluation.features={evaluation.features} with evaluation.weights={evaluation.weights!r}: inception "
            "needs the file of its weights, and the others bring theirs"
        )


def _cluster_conflicts(config: Config) -> Iterator[str]:
    cluster = config.cluster
    limit = 60 * cluster.time_min - 1
    if cluster.stop_lead_s is not None and cluster.stop_lead_s > limit:
        yield (
            f"cluster.stop_lead_s={cluster.stop_lead_s} must lie in [0, {limit}], within "
            f"cluster.time_min={cluster.time_min}"
        )
    if cluster.hang_s >= cluster.timeout_s:
        yield (
            f"cluster.hang_s={cluster.hang_s} must be below cluster.timeout_s={cluster.timeout_s}, or the collectives "
            "give up before the stacks are written; raise timeout_s, or set hang_s=0 to go without"
        )
    for option in cluster.sbatch:
        if not option.startswith("-"):
            yield f"cluster.sbatch holds {option!r}; its entries look like --option=value"


def _precision_conflicts(config: Config) -> Iterator[str]:
    """What DeepSpeed would accept and get wrong or slow."""
    engine, model = config.engine, config.model
    if engine.precision != "bf16_parameters":
        return
    if "fp32" in (model.chain.precision, model.flow.precision):
        yield (
            "engine.precision=bf16_parameters leaves no fp32 weights to compute with; leave model.chain.precision and "
            "model.flow.precision at engine"
        )
    if engine.kind != "deepspeed" or engine.zero_stage == 0:
        yield (
            "engine.precision=bf16_parameters needs engine.kind=deepspeed and engine.zero_stage=1 or 2, whose "
            "optimizer keeps fp32 masters by parameter; at stage 0 take bf16"
        )


def _schedule_conflicts(config: Config) -> Iterator[str]:
    optimizers = {"train.energy": config.train.energy, "train.upsampler": config.train.upsampler}
    for name, optimizer in optimizers.items():
        if optimizer.schedule != "constant" and optimizer.decay_steps is None:
            yield (
                f"{name}.schedule={optimizer.schedule} needs {name}.decay_steps, the step at which the decay ends"
            )
