"""What the ranks of a parity test run; importable, because spawned processes look it up by name."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ggcn import ranks
from ggcn.compose import compose
from ggcn.lanes import Lanes
from ggcn.learning.learner import Learner

STEPS = 4


def learned(folder: Path, world: int, words: list[str]) -> list[torch.Tensor]:
    """All weights after STEPS iterations on `world` gloo ranks, and the metrics of each step."""
    folder.mkdir()
    place = (str(folder), world, ranks.free_port(), words)
    mp.start_processes(_rank, args=place, nprocs=world)
    results = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), "ranks disagree"
    return results[0]


def _rank(rank: int, folder: str, world: int, port: int, words: list[str]) -> None:
    config = compose(words)
    device = ranks.join(ranks.Place(rank, world, rank, world, port=port), 60)
    torch.set_num_threads(1)
    lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
    learner = Learner(config, lanes, device)
    metrics = [ranks.mean(_iteration(learner, step)) for step in range(STEPS)]
    weights = [p.detach() for side in (learner.energies, learner.upsamplers) for p in side.parameters()]
    torch.save([*weights, *metrics], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _iteration(learner: Learner, step: int) -> torch.Tensor:
    lanes = learner.lanes
    size = learner.config.model.grids[-1]
    dice = torch.Generator().manual_seed(step)
    everything = torch.randint(0, 256, (lanes.count * lanes.width, 3, size, size), generator=dice, dtype=torch.uint8)
    mine = everything.unflatten(0, (lanes.count, lanes.width))[list(lanes.owned)].flatten(0, 1)
    data = learner.data(mine, step)
    particles = learner.sample(step)
    metrics = learner.learn_energy(data, particles, step) | learner.learn_upsamplers(particles, step)
    learner.average(step)
    return torch.stack([value.double() for value in metrics.values()])
