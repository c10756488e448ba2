"""Measures which objectives keep learning steady: short runs of FRAME, GCN and ggcn by

- KL: maximum likelihood, the KL flow;
- JKO on samples, JKO on segments: with the JKO term, at chain ends or between them and data at random;
- transport: the JKO flow as a regression, with starts coupled to data and without chains in the loss

at three learning rates, all else equal and no other stabilizer but the clipping of gradients.

    python tools/stability.py --data shards/faces32 --out docs/stability

Writes OUT.jsonl (a line per run; runs that are there are not repeated, so that it can be stopped and goes on), OUT.md
(the table) and OUT.png (the figure).
"""

import argparse
import json
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.errors import UserError
from ggcn.paths import user_path
from tools.benchmarks.stability_figure import plot, table
from tools.benchmarks.stability_runs import Point, measure, points

Run = dict[str, Any]


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    if min(args.seeds, args.steps, args.jobs) < 1:
        raise UserError("--seeds, --steps and --jobs must be at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the pool's processes, too
    lines, expected = args.out.with_suffix(".jsonl"), points(args.seeds)
    known = read(lines, args.steps)
    missing = [point for point in expected if point not in known]
    run_all(missing, args, lines, known)
    runs = [known[point] for point in expected]
    files.write_text(args.out.with_suffix(".md"), table(runs))
    plot(runs, args.out.with_suffix(".png"))
    print(table(runs))


def read(lines: Path, steps: int) -> dict[Point, Run]:
    """The runs so far. Raises UserError when they have another number of steps."""
    if not lines.exists():
        return {}
    text = lines.read_text(encoding="utf-8")
    runs = [
        json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")
    ]  # killed in a write
    if any(run["steps"] != steps for run in runs):
        raise UserError(f"{lines} has runs of {runs[0]['steps']} steps; take another --out")
    return {Point(run["system"], run["objective"], run["lr"], run["seed"]): run for run in runs}


def run_all(missing: list[Point], args: argparse.Namespace, lines: Path, known: dict[Point, Run]) -> None:
    """Measures what is missing and adds it to the file and to `known`."""
    lines.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(lines, "".join(json.dumps(run) + "\n" for run in known.values()))
    jobs = [(point, args.data, args.steps) for point in missing]
    with (
        lines.open("a", encoding="utf-8") as file,
        get_context("spawn").Pool(min(args.jobs, len(jobs) or 1)) as pool,
    ):
        for number, (point, run) in enumerate(pool.imap_unordered(_measure, jobs), 1):
            file.write(json.dumps(run) + "\n")
            file.flush()
            known[point] = run
            end = "held" if run["lost"] is None else f"lost at step {run['lost']}"
            name = f"{point.system}, {point.objective}, lr {point.lr:g}, seed {point.seed}"
            print(f"{number}/{len(missing)} {name}: {end}", flush=True)


def _measure(job: tuple[Point, str, int]) -> tuple[Point, Run]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    return job[0], measure(*job)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=user_path, required=True, help="shards at 16 px or more")
    args.add_argument("--out", type=user_path, required=True, help="name of the results, without ending")
    args.add_argument("--seeds", type=int, default=5)
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    return args


if __name__ == "__main__":
    run_cli(main)
