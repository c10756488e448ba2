"""One short run of tools/stability.py: a system learns by an objective, and is watched until it is lost."""

from dataclasses import asdict, dataclass
from itertools import product
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.config.schema import Config
from ggcn.data import stream
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.distributed.rank_info import RankInfo
from ggcn.learning.learner import Learner
from ggcn.models.frame import FilterBank
from ggcn.precision import set_numeric_flags
from ggcn.sampling.draw import Particles
from ggcn.training.linear_maps import fit_linear_maps

RATES = (3e-3, 1e-2, 3e-2)
"""learning rates: the default of model=ggcn, and three and ten times as much"""
SAMPLED_EVERY = 10
"""steps between looks at a run"""
SMALL = [
    "engine=plain",
    "engine.precision=fp32",
    "lanes=1",
    "train.batch=32",
    "train.energy_l2=0",
    "train.energy.warmup=0",
    "train.energy.beta1=0.5",
    "train.energy.beta2=0.999",
    "model.energy.width=16",
    "data.workers=0",
]
"""small enough for hundreds of runs on a laptop; fp32 and no warm-up, so that nothing but the objective and the
clipping of gradients steadies a run"""
FITTED = [
    "model.chain_init=hidden",
    "model.upsampler.base=fitted",
    "model.chain.init_from=base",
    "model.chain.steps=[4]",
    "model.chain.time=1.6",
    "model.chain.temperature=[0.0]",
    "model.flow.gamma=[1.0]",
]
"""chains from the fitted linear maps, in units of their time: what transport learns on"""
SYSTEMS = {
    "FRAME": [
        "model=frame",
        "model.grids=[16]",
        "model.energy.filters.scales=2",
        "model.energy.filters.orientations=4",
    ],
    "GCN": ["model=gcn", "model.grids=[16]"],
    "ggcn": [
        "model=ggcn",
        "model.grids=[8,16]",
        "model.chain.every=1",
        "model.flow.objective=contrastive",
        *FITTED,
    ],
}
"""FRAME and GCN have persistent chains; ggcn's start anew from its linear maps, whatever the objective"""
OBJECTIVES = {
    "KL": ["model.flow.gamma=[0.0]"],
    "JKO on samples": ["model.flow.jko_points=samples"],
    "JKO on segments": ["model.flow.jko_points=segments"],
    "transport": ["model.flow.objective=transport", f"model.chain.every={SAMPLED_EVERY}", *FITTED],
}
"""segments: between data and samples paired at random"""
CURVES = ("gap", "response", "blank", "saturation", "spread")


@dataclass(frozen=True)
class Point:
    """What a run is made of."""

    system: str
    objective: str
    lr: float
    seed: int


@dataclass(frozen=True)
class Limits:
    """What no run comes back from."""

    gap: float = 100.0
    """|mean energy of data minus that of samples|"""
    saturation: float = 0.5
    """share of pixels at or beyond black or white"""
    spread: float = 0.1
    """distance between samples over that between data: below it, all chains show one picture"""


def measure(point: Point, shards: str, steps: int) -> dict[str, Any]:
    """Trains one point on one thread: its curves, one value per SAMPLED_EVERY steps, and when it was lost."""
    if not torch.distributed.is_initialized():
        process_group.init_distributed(RankInfo(), 600)
    torch.set_num_threads(1)
    set_numeric_flags()
    curves = _train(settings(point, shards), steps)
    return {**asdict(point), "steps": steps, "curves": curves, "lost": lost_at(curves, steps)}


def points(seeds: int) -> list[Point]:
    """Every run, all of a seed before the next seed. FRAME, linear in its weights, has no transport here."""
    combinations = product(range(seeds), SYSTEMS, OBJECTIVES, RATES)
    return [Point(s, o, lr, seed) for seed, s, o, lr in combinations if (s, o) != ("FRAME", "transport")]


def settings(point: Point, shards: str) -> Config:
    """The config of a point. With the JKO terms gamma is 2 a where chains persist, and their time where they do not."""
    own = [f"data.shards={shards}", f"seed={point.seed}", f"train.energy.lr={point.lr}"]
    objective = OBJECTIVES[point.objective]
    if point.system != "ggcn" and point.objective.startswith("JKO"):
        objective = [*objective, "model.flow.gamma=[]"]
    return compose([*SMALL, *SYSTEMS[point.system], *objective, *own])


def _train(config: Config, steps: int) -> dict[str, list[float]]:
    """Curves over steps, ended early where the run blew up."""
    learner = Learner(config, Lanes(1, width=config.train.batch), torch.device("cpu"))
    if config.model.upsampler.base == "fitted":
        fit_linear_maps(config, learner)
    batches = stream.build(config.data, learner.lanes, config.seed, config.model.grids[-1], 0)
    bank = FilterBank(config.model.grids[-1], config.model.energy.filters)
    curves: dict[str, list[float]] = {name: [] for name in CURVES}
    for step in range(steps):
        data = learner.prepare_data(next(batches).images, step)
        particles = learner.sample(step, data)
        if particles and (step + 1) % SAMPLED_EVERY == 0:
            for name, value in _look(learner, bank, data[-1], particles).items():
                curves[name].append(value if isfinite(value) else 1e30)
            if not abs(curves["gap"][-1]) < Limits.gap:
                break
        learner.learn_energy(data, particles, step)
    batches.close()
    learner.close()
    return curves


@torch.no_grad()
def _look(learner: Learner, bank: FilterBank, data: Tensor, particles: Particles) -> dict[str, float]:
    ends, finest = particles.ends[-1], len(learner.grids) - 1
    energies = [learner.energies.energy(finest, x, "fp32").mean() for x in (data, ends)]
    return {
        "gap": (energies[0] - energies[1]).item(),
        "response": response_distance(bank, data, ends),
        "blank": response_distance(bank, data, data.mean((0, 2, 3), keepdim=True).expand_as(data)),
        "saturation": particles.reports[-1].saturation.mean().item(),
        "spread": torch.pdist(ends.flatten(1)).mean().item() / torch.pdist(data.flatten(1)).mean().item(),
    }


def response_distance(bank: FilterBank, data: Tensor, samples: Tensor) -> float:
    """mean_k |H_obs - H_syn| over the filters of FRAME's bank: how far the samples' statistics are off."""
    sides = [torch.cat([f.mean((0, 2, 3)) * f.shape[-1] for f in bank(x)]) for x in (data, samples)]
    return (sides[0] - sides[1]).abs().mean().item()


def lost_at(curves: dict[str, list[float]], steps: int, limits: Limits = Limits()) -> int | None:
    """The step from which on, to its end, a run was beyond a limit or its samples further from the data, by their
    responses, than blank images of its mean colour; None: never."""
    columns = zip(*(curves[name] for name in CURVES), strict=True)
    beyond = [
        not abs(gap) < limits.gap
        or response > blank
        or saturation > limits.saturation
        or spread < limits.spread
        for gap, response, blank, saturation, spread in columns
    ]
    held = max((number for number, bad in enumerate(beyond, 1) if not bad), default=0)
    return (
        None
        if held == len(beyond) and held * SAMPLED_EVERY >= steps - SAMPLED_EVERY
        else (held + 1) * SAMPLED_EVERY
    )
