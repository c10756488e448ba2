"""Functions that the ranks of a pool run: a few iterations of a run, and what they learn."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.engine import base, zero
from ggcn.engine.portable import STATE
from ggcn.learning.learner import Learner
from ggcn.run.background_save import write_file
from ggcn.training.state import State

Numbers = dict[str, Tensor]
"""kind/network/name of a weight, a moment of Adam, an averaged weight, a lane's chains, or the metrics of a step"""


def learn(
    rank: int, world: int, overrides: Sequence[str], end: int, first: int = 0, keep: Path | None = None
) -> Numbers:
    """Iterations number `first` to `end` of the run that `overrides` describe, from the state in `keep` if first > 0;
    writes its state to `keep`. Rank 0 returns the state and the metrics."""
    config = compose(list(overrides))
    lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
    learner = Learner(config, lanes, torch.device("cpu"))
    state = State(config, lanes, learner, torch.device("cpu"))
    if first and keep:
        state.restore(keep / f"step_{first}", state.metadata("shards"), "shards")
    metrics = {
        f"metric/{step}": process_group.all_reduce_mean(_iteration(learner, step))
        for step in range(first, end)
    }
    _check_agreement(learner)
    with tempfile.TemporaryDirectory() as place:
        folder = (keep or Path(process_group.broadcast_from_main(place))) / f"step_{end}"
        folder.mkdir(parents=True, exist_ok=True)
        for path, value in state.contents().items():
            write_file(folder / path, value)
        process_group.barrier()
        numbers = {**_read(folder), **metrics} if rank == 0 else {}
        process_group.barrier()
    return numbers


def learn_with_dropped_micro_batch(rank: int, world: int, overrides: Sequence[str], end: int) -> Numbers:
    """As learn, but DeepSpeed's engine gets the second of two micro-batches twice and never the first, as when a
    backward that was not announced is dropped."""
    original = base.micro_batches
    zero.micro_batches = lambda inputs, count: original(inputs, count)[1:] * 2
    try:
        return learn(rank, world, [*overrides, "train.accumulation=2"], end)
    finally:
        zero.micro_batches = original


def _iteration(learner: Learner, step: int) -> Tensor:
    lanes, size = learner.lanes, learner.config.model.grids[-1]
    dice = torch.Generator().manual_seed(step)
    count = lanes.count * lanes.width
    everything = torch.randint(0, 256, (count, 3, size, size), generator=dice, dtype=torch.uint8)
    mine = everything.unflatten(0, (lanes.count, lanes.width))[list(lanes.owned)].flatten(0, 1)
    data = learner.prepare_data(mine, step)
    particles = learner.sample(step, data)
    metrics = learner.learn_energy(data, particles, step) | learner.learn_upsamplers(particles, step)
    learner.update_averages(step, particles)
    return torch.stack([value.double() for value in metrics.values()])


def _check_agreement(learner: Learner) -> None:
    """The networks of all ranks hold the same bits."""
    for side in (learner.energies, learner.upsamplers):
        for name, parameter in side.named_parameters():
            assert torch.equal(parameter, process_group.broadcast_from_main(parameter.detach())), (
                f"ranks disagree on {name}"
            )


def _read(folder: Path) -> Numbers:
    """Every tensor of the files, by what it is."""
    numbers: Numbers = {}
    for path in sorted(folder.glob(f"*/{STATE}")):
        for name, parts in torch.load(path, weights_only=True)["parameters"].items():
            numbers |= {f"{kind}/{path.parent.name}/{name}": part for kind, part in parts.items()}
    for side, values in torch.load(folder / "ema.pt", weights_only=True).items():
        numbers |= {f"average/{side}/{name}": value for name, value in values.items()}
    for path in sorted(folder.glob("lanes/*.pt")):
        numbers[f"replay_buffer/{path.stem}"] = torch.load(path, weights_only=True)["chains"]
    return numbers


def differences(one: Numbers, two: Numbers) -> dict[str, float]:
    """The largest difference per kind: of moments and metrics relative to the largest entry of their network or
    step, of weights and chains absolute."""
    assert one.keys() == two.keys()
    result: dict[str, float] = {}
    for name in one:
        kind = name.split("/")[0]
        scale = _scale(one, name) if kind in ("exp_avg", "exp_avg_sq", "metric") else 1.0
        gap = ((one[name].double() - two[name].double()) / scale).abs().max().item()
        result[kind] = max(result.get(kind, 0.0), gap)
    return result


def _scale(numbers: Numbers, name: str) -> float:
    prefix = name.rpartition("/")[0] if name.startswith("metric") else "/".join(name.split("/")[:2])
    return max(value.abs().max().item() for key, value in numbers.items() if key.startswith(prefix)) or 1.0
