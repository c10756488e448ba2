"""Expected goodput, the best checkpoint.every and the cost of stragglers of a run on many nodes.

    python tools/simulate.py --run runs/faces --nodes 16
    python tools/simulate.py --step 0.4 --save 3 --start 90 --queue 600 --nodes 64 --preemptions 2
    python tools/simulate.py --step 0.4 --save 3 --start 90 --jitter 0.03 --figure docs/goodput.png

Goodput is the share of wall time in steps that lasted. Times come from a run's books (goodput.jsonl) or from the
options, which win. Failures are independent of each other, at a constant rate per node; the default is one in 6,300
hours, what Meta reported for the nodes of 8 GPUs that trained Llama 3 (419 interruptions of 16,384 GPUs in 54 days).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn.console import run_cli
from ggcn.errors import UserError
from tools.simulation.closed_form import best, daly_s, expected, young_s
from tools.simulation.job import Job, measured, slowest
from tools.simulation.simulate import simulate

SIZES = tuple(2**power for power in range(3, 13))
"""GPUs of the table and of the figure, 8 to 4,096"""
TIMES = {"step": "step_s", "save": "save_s", "start": "start_s", "queue": "queue_s", "detect": "detect_s"}
"""{option: field of Job} of the options in seconds"""


def main() -> None:
    """Prints what is expected of the job, and of the same job on 8 to 4,096 GPUs."""
    args = _parser().parse_args()
    job = _job(args)
    print(summary(job, args.every))
    print()
    print(table(job, args.every))
    if args.figure:
        draw(job, Path(args.figure), args.every)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", help="run directory whose measured times are taken")
    for option, name in TIMES.items():
        parser.add_argument(f"--{option}", type=float, help=f"seconds; default {getattr(Job(), name):g}")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument(
        "--mtbf-h", type=float, default=Job.node_mtbf_h, help="hours between failures of a node"
    )
    parser.add_argument(
        "--preemptions", type=float, default=0.0, help="per day of running, with time to save"
    )
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="standard deviation of log(step time) of a rank"
    )
    parser.add_argument("--every", type=int, help="steps between checkpoints, to compare with the best")
    parser.add_argument("--figure", help="PNG of the goodput by the number of GPUs (matplotlib)")
    return parser


def _job(args: argparse.Namespace) -> Job:
    """The job that the options describe. Raises UserError where they cannot be."""
    job = Job(
        nodes=args.nodes,
        ranks_per_node=args.ranks_per_node,
        node_mtbf_h=args.mtbf_h,
        preemptions_per_day=args.preemptions,
        jitter=args.jitter,
    )
    job = measured(Path(args.run), job) if args.run else job
    given = {name: getattr(args, option) for option, name in TIMES.items()}
    job = replace(job, **{name: value for name, value in given.items() if value is not None})
    if job.nodes < 1 or job.ranks_per_node < 1 or job.step_s <= 0 or job.node_mtbf_h <= 0:
        raise UserError("--nodes, --ranks-per-node, --step and --mtbf-h must be greater than 0")
    if (
        job.save_s <= 0
        or min(job.start_s, job.queue_s, job.detect_s, job.jitter, job.preemptions_per_day) < 0
    ):
        raise UserError("--save must be greater than 0, and no other time or rate below 0")
    return job


def summary(job: Job, every: int | None) -> str:
    """What is expected of one job, as text."""
    optimum = best(job)
    shares = simulate(job, optimum.every)
    parts = ", ".join(f"{kind} {share:.2%}" for kind, share in shares.items())
    hours = 1 / (3600 * job.failure_rate)
    lines = [
        f"{job.nodes} nodes of {job.ranks_per_node} ranks; a failure every {hours:,.1f} h; seconds: "
        f"step {job.step_s:.3g}, save {job.save_s:.3g}, start {job.start_s:.3g}, waiting {job.queue_s:.3g}",
        f"best checkpoint.every: {optimum.every:,} (Young {young_s(job) / job.sync_step_s:,.0f}, "
        f"Daly {daly_s(job) / job.sync_step_s:,.0f}); goodput {optimum.goodput:.2%}",
        f"simulated: {parts}",
    ]
    if every:
        lines.append(f"checkpoint.every={every}: goodput {expected(job, every).goodput:.2%}")
    if job.jitter:
        slower = slowest(job.ranks, job.jitter)
        lines.append(
            f"stragglers: a step takes {slower:.3f} of a rank's own; efficiency {optimum.efficiency:.2%}"
        )
    return "\n".join(lines)


def table(job: Job, every: int | None) -> str:
    """Goodput by the number of GPUs, as a table in Markdown."""
    more = f" goodput at every={every} |" if every else ""
    head = f"| GPUs | a failure every, h | best every | goodput | simulated | with stragglers |{more}"
    lines = [head, "| --- " * (head.count("|") - 1) + "|"]
    for gpus in SIZES:
        sized = job.on(gpus)
        found = best(sized)
        simulated = simulate(sized, found.every)["step"]
        row = [
            f"{gpus:,}",
            f"{1 / (3600 * sized.failure_rate):,.1f}",
            f"{found.every:,}",
            f"{found.goodput:.2%}",
        ]
        row += [f"{simulated:.2%}", f"{found.efficiency:.2%}"]
        row += [f"{expected(sized, every).goodput:.2%}"] if every else []
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def draw(job: Job, path: Path, every: int | None) -> None:
    """Writes the figure. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--figure needs matplotlib; pip install 'ggcn[study]'") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    jobs = [job.on(gpus) for gpus in SIZES]
    fixed = every or best(jobs[0]).every
    lines: dict[str, Sequence[float]] = {
        "best checkpoint.every": [best(each).goodput for each in jobs],
        f"checkpoint.every={fixed:,}": [expected(each, fixed).goodput for each in jobs],
    }
    if job.jitter:
        lines["best, less waiting for stragglers"] = [best(each).efficiency for each in jobs]
    for label, values in lines.items():
        axes.plot(SIZES, values, marker="o", markersize=3, label=label)
    simulated = [simulate(each, best(each).every)["step"] for each in jobs]
    axes.plot(SIZES, simulated, "kx", label="simulated, best")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    axes.set(xlabel="GPUs", ylabel="goodput", ylim=(None, 1.0))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_cli(main)
