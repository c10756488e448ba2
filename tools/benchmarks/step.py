"""`bench.py step`: the time of a training step, phase by phase."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning.learner import Learner
from ggcn.training.state import State
from tools.benchmarks.report import Table, log, timed

COMPUTE = ("sample", "learn the energy", "learn the up-samplers")
"""the phases that compute, without logging and averaging"""


def add(commands: Any) -> None:
    """The flags of `bench.py step`."""
    parser = commands.add_parser("step", help="a training step by phases")
    parser.add_argument("overrides", nargs="*", help="of the run's config, for example experiment=quickstart")
    parser.add_argument("--rounds", type=int, default=10, help="steps; the minimum of each phase is reported")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default 1)")
    parser.set_defaults(measure=steps)


def steps(args: argparse.Namespace) -> Iterator[Table]:
    """One table, on one rank and noise for images. Raises UserError for an invalid config."""
    if min(args.rounds, args.threads) < 1:
        raise UserError("--rounds and --threads must be at minima 1")
    config = compose(["engine=plain", *args.overrides])
    device = process_group.init_distributed(process_group.RankInfo(), 60)
    torch.set_num_threads(args.threads)  # init_distributed sets as many as there are cores
    try:
        yield _table(config, device, args.rounds)
    finally:
        process_group.shutdown()


def _table(config: Config, device: torch.device, rounds: int) -> Table:
    lanes = Lanes(config.lanes, width=config.train.batch // config.lanes)
    learner = Learner(config, lanes, device)
    state, size = State(config, lanes, learner, device), config.model.grids[-1]
    images = torch.randint(256, (config.train.batch, 3, size, size), dtype=torch.uint8)
    log(f"{rounds} steps")
    every = config.model.chain.every
    numbers = range(every - 1, (rounds + 1) * every, every)  # of steps that have chains
    _step(learner, state, images, numbers[0])  # warm-up: kernels are chosen and memory is allocated
    rounds_s = [_step(learner, state, images, step) for step in numbers[1:]]
    minima = {phase: 1e3 * min(seconds[phase] for seconds in rounds_s) for phase in rounds_s[0]}
    upsampling, total = minima.pop("up-sample"), sum(minima.values())
    rows = [[phase, *_share(ms, total)] for phase, ms in minima.items()]
    rows.insert(2, ["of it: up-sample", *_share(upsampling, total)])
    rows.append(["chains and learning", *_share(sum(minima[phase] for phase in COMPUTE), total)])
    chain = ", ".join(f"{grid.size} px: {grid.steps}" for grid in learner.grids)
    name = f"{config.train.batch} images, {config.engine.precision}, Langevin steps {chain}"
    rows.append(["all", *_share(total, total)])
    if every > 1:
        without = total - minima["sample"] - minima["learn the up-samplers"]
        average = without + (total - without) / every
        rows.append([f"mean step, chains in one of {every}", *_share(average, total)])
    return Table(f"A training step: {name}", ["phase", "ms", "share"], rows)


def _step(learner: Learner, state: State, images: Tensor, step: int) -> dict[str, float]:
    """Seconds per phase of a step as the trainer takes it, and of up-sampling alone."""
    seconds: dict[str, float] = {}

    def phase(name: str, call: Callable[[], Any]) -> Any:
        results: list[Any] = []
        seconds[name] = timed(lambda: results.append(call()), learner.device)
        return results[0]

    data = phase("images to grids", partial(learner.prepare_data, images, step))
    particles = phase("sample", partial(learner.sample, step, data))
    phase("learn the energy", partial(learner.learn_energy, data, particles, step))
    phase("learn the up-samplers", partial(learner.learn_upsamplers, particles, step))
    phase("average weights", partial(learner.update_averages, step, particles))
    phase("numbers to log", lambda: (learner.chain_metrics(particles), state.weight_norms()))
    with torch.no_grad():
        phase("up-sample", lambda: [learner.upsamplers.start(*pair) for pair in enumerate(particles.inputs)])
    return seconds


def _share(ms: float, total: float) -> list[str]:
    return [f"{ms:.1f}", f"{100 * ms / total:.1f} %"]
