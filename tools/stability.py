"""Measures what the JKO flow does for stability: the same runs with the KL flow and with the JKO flow.

    python tools/stability.py --data shards/faces32 --out docs/stability

For every system, learning rate, chain step size and seed, one short run with gamma 0 and one with gamma 2a, all else
equal and no other stabiliser but the clipping of gradients. Writes OUT.jsonl (a line per run; runs that are there are
not repeated), OUT.md (the table) and OUT.png (the plot).
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.errors import UserError
from ggcn.paths import user_path

SYSTEMS = {"GCN": ("gcn", 32, (3.0, 10.0, 30.0)), "FRAME": ("frame", 16, (1.0, 3.0))}
"""preset with the bank of persistent chains, image size, and Langevin step sizes around its default"""
RATES = (3e-3, 1e-2, 3e-2)
"""from three times the default on: at the default both flows are steady"""
FLOWS = ("kl", "jko")
GAP_LIMIT = 100.0
"""a mean energy difference between data and samples that no run comes back from"""
SATURATION_LIMIT = 0.5
"""share of pixels at or beyond black or white, at the end"""
SPREAD_LIMIT = 0.1
"""distance between samples over that between data, at the end: below it, all chains show one picture"""
SMALL = [
    "engine=plain",
    "engine.precision=fp32",
    "lanes=1",
    "train.batch=32",
    "train.energy_l2=0",
    "train.energy.warmup=0",
    "model.energy.width=16",
    "data.workers=0",
]
"""small enough for hundreds of runs on a laptop; fp32 and no warm-up, so that nothing but the flow steadies a run"""

Run = dict[str, Any]


def main() -> None:
    """The command line."""
    arguments = parser().parse_args()
    if min(arguments.seeds, arguments.steps, arguments.jobs) < 1:
        raise UserError("--seeds, --steps and --jobs must be at least 1")
    lines = arguments.out.with_suffix(".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    known = (
        [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        if lines.exists()
        else []
    )
    expected = list(points(arguments.seeds))
    missing = [point for point in expected if not any(same(point, run) for run in known)]
    with lines.open("a", encoding="utf-8") as file, get_context("spawn").Pool(arguments.jobs) as pool:
        jobs = [(point, arguments.data, arguments.steps) for point in missing]
        for number, run in enumerate(pool.imap_unordered(measure, jobs), 1):
            file.write(json.dumps(run) + "\n")
            file.flush()
            print(f"{number}/{len(missing)} {title(run)}: {run['end']}", flush=True)
            known.append(run)
    runs = [run for run in known if any(same(point, run) for point in expected)]
    files.write_text(arguments.out.with_suffix(".md"), table(runs))
    plot(runs, arguments.out.with_suffix(".png"))
    print(table(runs))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", required=True, help="shards at 32 px or more")
    args.add_argument("--out", type=user_path, required=True, help="name of the results, without ending")
    args.add_argument("--seeds", type=int, default=5)
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    return args


def points(seeds: int) -> Iterator[Run]:
    """Every combination; both flows of a pair share all else, the seed too."""
    for seed, (system, rate, a) in product(range(seeds), settings()):
        for flow in FLOWS:
            yield {"system": system, "flow": flow, "lr": rate, "step_size": a, "seed": seed}


def settings() -> list[tuple[str, float, float]]:
    """System, learning rate and chain step size of every row of the table."""
    return [(name, *row) for name, (_, _, sizes) in SYSTEMS.items() for row in product(RATES, sizes)]


def same(point: Run, run: Run) -> bool:
    """Whether `run` is the result of `point`."""
    return all(run[key] == value for key, value in point.items())


def title(run: Run) -> str:
    """A run in a few words."""
    return f"{run['system']} {run['flow']} lr {run['lr']:g} a {run['step_size']:g} seed {run['seed']}"


def measure(job: tuple[Run, str, int]) -> Run:
    """Trains one point and says how it went."""
    import torch

    from ggcn.distributed import process_group
    from ggcn.distributed.rank_info import RankInfo

    point, data, steps = job
    if not torch.distributed.is_initialized():
        process_group.init_distributed(RankInfo(), 600)
        torch.set_num_threads(1)
    curves = train(point, data, steps)
    return {**point, "steps": steps, **curves, "end": verdict(curves, steps)}


def train(point: Run, shards: str, steps: int) -> dict[str, list[float]]:
    """Curves over steps, ended early where the run blew up."""
    from ggcn.data import stream
    from ggcn.models.frame import FilterBank
    from ggcn.precision import set_numeric_flags

    set_numeric_flags()
    config, learner = learner_of(point, shards)
    batches = stream.build(config.data, learner.lanes, config.seed, config.model.grids[-1], 0)
    bank = FilterBank(config.model.grids[-1], config.model.energy.filters)
    curves: dict[str, list[float]] = {name: [] for name in ("gap", "response", "saturation", "spread")}
    for step in range(steps):
        data = learner.prepare_data(next(batches).images, step)
        particles = learner.sample(step, data)
        metrics = learner.learn_energy(data, particles, step)
        size = config.model.grids[-1]
        values = {
            "gap": metrics[f"energy_gap/{size}"].item(),
            "response": response_distance(bank, data[0], particles.ends[0]),
            "saturation": particles.reports[0].saturation.mean().item(),
            "spread": spread(particles.ends[0]) / spread(data[0]),
        }
        for name, value in values.items():
            curves[name].append(value if isfinite(value) else 1e30)
        if not abs(curves["gap"][-1]) < GAP_LIMIT:
            break
    batches.close()
    return curves


def learner_of(point: Run, shards: str) -> tuple[Any, Any]:
    """The point's config and learner."""
    import torch

    from ggcn.config.compose import compose
    from ggcn.distributed.lanes import Lanes
    from ggcn.learning.learner import Learner

    (model, size, _), a = SYSTEMS[point["system"]], point["step_size"]
    args = [
        f"model={model}",
        f"model.grids=[{size}]",
        f"data.shards={shards}",
        f"seed={point['seed']}",
        f"train.energy.lr={point['lr']}",
        f"model.chain.step_size=[{a}]",
        f"model.flow.gamma=[{2 * a if point['flow'] == 'jko' else 0}]",
    ]
    config = compose([*SMALL, *args])
    return config, Learner(config, Lanes(1, width=config.train.batch), torch.device("cpu"))


def response_distance(bank: Any, data: Any, samples: Any) -> float:
    """mean_k |H_obs - H_syn| over the filters of FRAME's bank: how far the samples' statistics are off."""
    import torch

    with torch.no_grad():
        sides = [torch.cat([f.mean((0, 2, 3)) * f.shape[-1] for f in bank(x)]) for x in (data, samples)]
    return (sides[0] - sides[1]).abs().mean().item()


def spread(images: Any) -> float:
    """Mean distance between two images of a batch [n, c, h, w]."""
    import torch

    return torch.pdist(images.flatten(1)).mean().item()


def verdict(curves: dict[str, list[float]], steps: int) -> str:
    """How a run ended: well, blown up, saturated or collapsed."""
    tail = {name: median(values[-20:]) for name, values in curves.items()}
    if len(curves["gap"]) < steps or not abs(curves["gap"][-1]) < GAP_LIMIT:
        return "blown up"
    if tail["saturation"] > SATURATION_LIMIT:
        return "saturated"
    return "collapsed" if tail["spread"] < SPREAD_LIMIT else "well"


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row per system, learning rate and step size, both flows side by side."""
    steps, seeds = runs[0]["steps"], len({run["seed"] for run in runs})
    head = [
        f"{seeds} seeds, {steps} steps each; ends: well / saturated / collapsed / blown up; "
        "gap and response: medians over the last 20 steps of the seeds that did not blow up.",
        "",
        "| system | lr | a | KL ends | JKO ends | KL gap | JKO gap | KL response | JKO response |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [_row(runs, *key) for key in settings()]
    return "\n".join([*head, *rows, *(_total(runs, system) for system in SYSTEMS)]) + "\n"


def _row(runs: Sequence[Run], system: str, rate: float, a: float) -> str:
    cells = [
        [
            run
            for run in runs
            if (run["system"], run["lr"], run["step_size"], run["flow"]) == (system, rate, a, flow)
        ]
        for flow in FLOWS
    ]
    parts = [*map(_ends, cells), *(_level(c, "gap") for c in cells), *(_level(c, "response") for c in cells)]
    return f"| {system} | {rate:g} | {a:g} | " + " | ".join(parts) + " |"


def _total(runs: Sequence[Run], system: str) -> str:
    cells = [[run for run in runs if (run["system"], run["flow"]) == (system, flow)] for flow in FLOWS]
    return f"| **{system}** | all | all | {_ends(cells[0])} | {_ends(cells[1])} | | | | |"


def _ends(runs: Sequence[Run]) -> str:
    ends = [run["end"] for run in runs]
    return " / ".join(str(ends.count(kind)) for kind in ("well", "saturated", "collapsed", "blown up"))


def _level(runs: Sequence[Run], name: str) -> str:
    tails = [median(map(abs, run[name][-20:])) for run in runs if run["end"] != "blown up"]
    return f"{median(tails):.3g}" if tails else "-"


def plot(runs: Sequence[Run], path: Path) -> None:
    """Energy gaps over steps, every run a line: a panel per system and learning rate."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install -e '.[study]'") from None
    figure = Figure(figsize=(4 * len(RATES), 3.2 * len(SYSTEMS)), layout="constrained")
    panels = figure.subplots(len(SYSTEMS), len(RATES), sharex=True, sharey=True, squeeze=False)
    for (row, system), (column, rate) in product(enumerate(SYSTEMS), enumerate(RATES)):
        panel = panels[row][column]
        panel.set(title=f"{system}, learning rate {rate:g}", yscale="symlog", ylim=(-GAP_LIMIT, GAP_LIMIT))
        for run in (run for run in runs if (run["system"], run["lr"]) == (system, rate)):
            colour, label = {"kl": ("tab:red", "KL"), "jko": ("tab:blue", "JKO")}[run["flow"]]
            known = label in panel.get_legend_handles_labels()[1]
            panel.plot(run["gap"], color=colour, alpha=0.4, lw=0.8, label=None if known else label)
        panel.axhline(0, color="black", lw=0.5)
    panels[0][0].legend()
    figure.supxlabel("step")
    figure.supylabel("energy of data minus energy of samples")
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    run_cli(main)
