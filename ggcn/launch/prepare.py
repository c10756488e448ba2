"""What every mode does before a run starts and after it ends: checks, locks, the frozen config, the last message."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ggcn.config.schema import Config
from ggcn.console import command_line, this_command
from ggcn.errors import UserError
from ggcn.launch import slurm
from ggcn.redact import redact
from ggcn.run import code_snapshot, event_log, status
from ggcn.run.directory import RunDir, RunTaken


def is_complete(config: Config, run: RunDir) -> bool:
    """Whether a valid checkpoint has all the steps of the config."""
    if event_log.saved_step(run) < config.train.steps:
        return False
    from ggcn.run import checkpoint  # imports torch

    newest = checkpoint.newest_valid(run.checkpoints, deep=False)
    return newest is not None and checkpoint.meta(newest)["step"] >= config.train.steps


def clear_errors(run: RunDir) -> None:
    """Removes what the ranks of earlier attempts left about their failures."""
    for kind in ("error", "transient", "stacks"):
        for path in run.logs.glob(f"*.{kind}"):
            path.unlink()


def refuse_queued(run: RunDir) -> None:
    """Raises UserError while the run has a SLURM job, running or waiting."""
    result = status.read(run, slurm.queued_jobs([run])) if run.config.exists() else None
    if result and result.job:
        raise UserError(
            f"{run.path} is {result.state}; cancel it with `{command_line('status')} {run.path} --cancel` first"
        )


def freeze(config: Config, run: RunDir) -> None:
    """Freezes the config and the code, after logging what --force changes. Raises UserError while ranks of a launcher
    that was killed still train the run."""
    if str(run.path) != str(run.path).encode(errors="replace").decode():
        raise UserError(
            f"{run.path} is not a name in UTF-8, which TensorBoard needs; set another paths.runs=FOLDER"
        )
    with run.exclusive("rank"):
        try:
            changes = run.changes(config)
        except UserError as error:  # a config that this version cannot read
            changes = [str(error)]
        with run.writable():
            if changes:
                event_log.add(run, "force", changes=changes)
        run.freeze(config)
    print(f"run {run.path}", file=sys.stderr)


@contextmanager
def launcher_lock(run: RunDir) -> Iterator[None]:
    """Locks the run against other launchers that submit it. Raises UserError while one is at work."""
    with ExitStack() as stack:
        try:
            stack.enter_context(run.exclusive("launcher"))
        except RunTaken:
            raise UserError(
                f"another launcher is at work on {run.path}, so nothing was submitted; "
                f"`{command_line('status')} {run.path}` shows what it did"
            ) from None
        yield


def warn_of_changed_code(run: RunDir) -> None:
    """Warns before a job is submitted that its code differs from the code of the run's last start."""
    start = event_log.last(event_log.read(run), "start") or {}
    for change in code_snapshot.changes({"code": start.get("code")}, run.code.parent):
        print(f"warning: {run.path} resumes with other code than it last ran with: {change}", file=sys.stderr)


def print_outcome(run: RunDir, complete: bool, resume: str | None = None) -> None:
    """Prints how the run ended and how to resume it, by default with this process's command."""
    from ggcn.run import checkpoint

    newest = checkpoint.newest_valid(run.checkpoints, deep=False)
    where = newest.name if newest else "no checkpoint yet"
    if complete:
        print(f"complete, {where}; samples: {run.samples}")
    else:
        print(f"stopped, {where}; to resume: {resume or redact(this_command())}")
