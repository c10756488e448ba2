"""Shows the status of runs, local ones and SLURM jobs:

    python cluster/status.py                  all runs in runs/
    python cluster/status.py runs/faces64     one run, or the table of a sweep's points
    python cluster/status.py runs/faces64 --follow    a live table until the runs are over; a line whenever something
                                              changes where the output is no terminal or rich is not installed
    python cluster/status.py --json           for scripts: a list of records; with --follow a record a line
    python cluster/status.py runs/faces64 --cancel    stops it after a last checkpoint

It reads files and, for submitted runs, asks squeue; only --cancel affects a run.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ggcn.cli import status_record
from ggcn.cli.status_text import follow_line, report, table
from ggcn.errors import UserError
from ggcn.launch import cancel
from ggcn.launch.slurm import queued_jobs_or_none
from ggcn.run.directory import RunDir
from ggcn.run.find import find
from ggcn.run.status import read

POLL_S = 2
"""seconds between two looks of --follow"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or names in runs/")
    parser.add_argument("--follow", action="store_true", help="until the runs are over")
    parser.add_argument("--json", action="store_true", help="records for scripts, in JSON")
    parser.add_argument("--cancel", action="store_true", help="stop after a last checkpoint")
    return parser


def main() -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_intermixed_args()
    return show(args.runs, args.follow, args.cancel, args.json)


def show(args: Sequence[str], follow: bool = False, cancel: bool = False, json: bool = False) -> int:
    """Prints the status of the runs that `args` name, see `find`; follows or cancels them. Returns the exit code."""
    runs = find(args)
    if cancel:
        return max([_cancel(run, alone=len(runs) == 1) for run in runs])
    if follow:
        return _follow_json(runs) if json else _follow(runs)
    jobs = queued_jobs_or_none(runs)
    if json:
        print(status_record.text([status_record.record(run, jobs) for run in runs]))
    else:
        print(table(runs, jobs) if len(runs) > 1 else report(read(runs[0], jobs)))
    return 0


def _follow(runs: Sequence[RunDir]) -> int:
    """Shows the runs until all are over, on a terminal as a live table; 0 when all are complete."""
    if sys.stdout.isatty():
        try:
            from ggcn.cli.status_live import LiveTable
        except ImportError:  # rich is an extra
            return _follow_in_lines(runs)
        with LiveTable() as live:
            for records in _looks(runs):
                live.show(records)
        return _exit_code(records)
    return _follow_in_lines(runs)


def _follow_json(runs: Sequence[RunDir]) -> int:
    """Prints the record of a run whenever its step or its state changes, until all are over."""
    seen: dict[str, Any] = {}
    for records in _looks(runs):
        for record in records:
            now = record.get("step"), record["detail"]
            if seen.get(record["path"]) != now:
                seen[record["path"]] = now
                print(status_record.text(record), flush=True)
    return _exit_code(records)


def _looks(runs: Sequence[RunDir]) -> Iterator[list[dict[str, Any]]]:
    """The records of the runs every POLL_S, until none of them is live."""
    while True:
        jobs = queued_jobs_or_none(runs)
        records = [status_record.record(run, jobs) for run in runs]
        yield records
        if not any(record["live"] for record in records):
            return
        time.sleep(POLL_S)


def _exit_code(records: Sequence[dict[str, Any]]) -> int:
    return 0 if all(record["state"] == "complete" for record in records) else 1


def _follow_in_lines(runs: Sequence[RunDir]) -> int:
    """Prints a line whenever the step or the state of a run changes, until all are over; 0 when all are complete."""
    seen: dict[RunDir, Any] = {}
    while True:
        jobs = queued_jobs_or_none(runs)
        statuses = [read(run, jobs) for run in runs]
        for run, status in zip(runs, statuses, strict=True):
            if seen.get(run) != (status.state, status.step):
                seen[run] = status.state, status.step
                print(f"{f'{run.path.name}: ' if len(runs) > 1 else ''}{follow_line(status)}", flush=True)
        if not any(status.live for status in statuses):
            return 0 if all(status.state == "complete" for status in statuses) else 1
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
