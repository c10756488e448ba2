"""Submits runs to SLURM, or prints what would be submitted."""

import os
import shlex
import sys
from contextlib import ExitStack

from ggcn.config.compose import to_yaml
from ggcn.config.interpolation import unresolved
from ggcn.console import command_line
from ggcn.errors import UserError
from ggcn.launch import batch_script, data_check, slurm
from ggcn.launch.batch_script import Point
from ggcn.launch.prepare import freeze, launcher_lock, warn_of_changed_code
from ggcn.launch.resources import ResourceRequest
from ggcn.redact import redact
from ggcn.run.status import queued_job


def submit(points: list[Point]) -> int:
    """Submits the runs that have no job, those with the same batch script as one job array; returns the exit code."""
    slurm.require()
    check_requests(points)
    for config, _ in points:
        data_check.check(config)
    with ExitStack() as stack:
        for _, run in points:  # before asking squeue, or two launchers would both see that there is no job
            stack.enter_context(launcher_lock(run))
        for group in batch_script.groups(_freeze_new(points)):
            _submit_group(group)
    print(f"  follow: {command_line('status')} {shlex.quote(os.path.relpath(points[0][1].path))} --follow")
    return 0


def _freeze_new(points: list[Point]) -> list[Point]:
    """Freezes the configs of the runs that have no job, and returns these runs."""
    jobs, new = slurm.queue(), []
    for config, run in points:
        if queued := queued_job(run, jobs):
            print(f"{run.path} is already job {queued[0]} ({queued[1]})")
            continue
        freeze(config, run)
        warn_of_changed_code(run)
        new.append((config, run))
    return new


def _submit_group(group: list[Point]) -> None:
    runs = [run for _, run in group]
    for run, job_id in zip(runs, slurm.submit(group[0][0], runs), strict=True):
        print(f"submitted {run.path} as job {job_id}")
        print(f"  log:    {run.logs / 'rank_0000.log'}, batch script: {batch_script.folder(runs)}")


def check_requests(points: list[Point]) -> None:
    """Raises UserError for what cannot be submitted; prints each warning once."""
    batch_script.groups(points)
    warnings: dict[str, None] = {}
    for config, _ in points:
        request = ResourceRequest.of(config)
        request.validate(config)
        warnings |= dict.fromkeys(request.warnings)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_scripts(points: list[Point]) -> int:
    """Prints the batch scripts, each with the config of its first run, with interpolations unresolved and URLs without
    passwords; returns the exit code. Writes nothing."""
    check_requests(points)
    for index, group in enumerate(batch_script.groups(points)):
        config, runs = group[0][0], [run for _, run in group]
        print("\n" * bool(index) + redact(batch_script.text(unresolved(config), runs)))
        print(redact(f"\n# {runs[0].config}\n{to_yaml(config)}"), end="")
    try:
        for config, _ in points:
            data_check.check(config)
    except UserError as error:
        print(f"warning: it would be refused: {error}", file=sys.stderr)
    return 0
