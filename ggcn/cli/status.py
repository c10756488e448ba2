"""Shows the status of runs, local ones and SLURM jobs:

    python cluster/status.py                  all runs in runs/
    python cluster/status.py runs/faces64     one run, or the table of a sweep's points
    python cluster/status.py runs/faces64 --follow    a line whenever something changes, until the run is over
    python cluster/status.py runs/faces64 --cancel    stops it after a last checkpoint

It reads files and, for submitted runs, asks squeue; only --cancel affects a run.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from ggcn.cli.status_text import follow_line, report, table
from ggcn.errors import UserError
from ggcn.launch import cancel
from ggcn.launch.slurm import queued_jobs_or_none
from ggcn.run.directory import RunDir
from ggcn.run.find import find
from ggcn.run.status import read

POLL_S = 2
"""seconds between two lines of --follow at least"""


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or names in runs/")
    parser.add_argument("--follow", action="store_true", help="a line whenever something changes")
    parser.add_argument("--cancel", action="store_true", help="stop after a last checkpoint")
    args = parser.parse_intermixed_args()
    return show(args.runs, args.follow, args.cancel)


def show(args: Sequence[str], follow: bool = False, cancel: bool = False) -> int:
    """Prints the status of the runs that `args` name, see `find`; follows or cancels them. Returns the exit code."""
    runs = find(args)
    if cancel:
        return max([_cancel(run, alone=len(runs) == 1) for run in runs])
    if follow:
        return max(_follow(run) for run in runs)
    jobs = queued_jobs_or_none(runs)
    print(table(runs, jobs) if len(runs) > 1 else report(read(runs[0], jobs)))
    return 0


def _follow(run: RunDir) -> int:
    """Prints a line whenever the step or the state changes, until the run is over; 0 when it is complete."""
    last: tuple[Any, ...] = ()
    while True:
        status = read(run, queued_jobs_or_none([run]))
        if last != (status.state, status.step):
            last = (status.state, status.step)
            print(follow_line(status), flush=True)
        if not status.live:
            return 0 if status.state == "complete" else 1
        time.sleep(POLL_S)


def _cancel(run: RunDir, alone: bool) -> int:
    """Cancels a run and prints what happens; an error ends the command only if the run was named `alone`."""
    try:
        print(cancel.cancel(run))
    except UserError as error:
        if alone:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
