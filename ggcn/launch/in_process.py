"""Training inside the caller's process: `ggcn.train`, for notebooks and scripts. One process, one rank, no cluster."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggcn.config.schema import Config
from ggcn.config.validation import validate, validate_packages, validate_world
from ggcn.errors import UserError
from ggcn.launch import data_check
from ggcn.launch.prepare import freeze, is_complete, refuse_queued
from ggcn.launch.signals import SIGNALS, StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir


@dataclass(frozen=True)
class TrainedRun(os.PathLike[str]):
    """A run after `ggcn.train`; it is a path, so that `ggcn.load(ggcn.train(config))` samples from it."""

    path: Path
    """the run directory"""
    step: int
    """steps completed and saved"""
    finished: bool
    """whether these are all of train.steps; False after a TERM or USR2 signal"""

    def __fspath__(self) -> str:
        return str(self.path)


def train(config: Config, force: bool = False) -> TrainedRun:
    """Trains the run that `config` describes, or resumes it, as one rank in this process; the same run directory and
    the same numbers as `ggcn launch -m debug`. Returns when the run has config.train.steps.

    On Ctrl-C, or a notebook's stop button, the step is completed and saved, then KeyboardInterrupt is raised; the same
    call goes on from there. `force`: resume although the config changed. PyTorch's numeric flags, threads, log handlers
    and environment variables are the caller's again afterwards.

    Raises UserError for what keeps the run from starting or continuing, such as missing shards or a changed config.
    """
    validate(config)
    run = RunDir.of(config)
    if not force:
        run.refuse_changes(config)
    if is_complete(config, run):
        return TrainedRun(run.path, event_log.saved_step(run), True)
    refuse_queued(run)
    validate_world(config, 1)
    validate_packages(config)
    data_check.check(config, remote=True)
    stop = StopSignal()
    with run.exclusive("launcher"), _surroundings(stop):
        freeze(config, run)
        trained = _run_rank(run, stop)
    if stop.signal == signal.SIGINT and not trained.finished:
        raise KeyboardInterrupt(f"{run.path} is saved at step {trained.step}; the same call goes on")
    return trained


def _run_rank(run: RunDir, stop: StopSignal) -> TrainedRun:
    """Trains as the only rank; leaves the process group whatever happens, so that another call can form its own."""
    import torch.distributed as dist

    from ggcn.distributed import process_group
    from ggcn.distributed.rank_info import RankInfo
    from ggcn.launch import job, rank_log

    if dist.is_initialized():
        raise UserError(
            "this process belongs to a process group of its own; call ggcn.train in another process"
        )
    rank_log.configure(run.log(0), 0)
    try:
        outcome = job.run_rank(run, RankInfo(), stop, watched=False, mode="debug")
    finally:
        process_group.shutdown()
        if "deepspeed" in sys.modules:
            from ggcn.engine.deepspeed_internals import forget_process_group

            forget_process_group()
    return TrainedRun(run.path, outcome.step, outcome.finished)


@contextmanager
def _surroundings(stop: StopSignal) -> Iterator[None]:
    """Handles signals by `stop`, and gives the caller what training sets for a whole process back at the end."""
    import torch

    from ggcn import progress
    from ggcn.precision import numeric_flags

    root, threads, environment = logging.getLogger(), torch.get_num_threads(), dict(os.environ)
    handlers, level, path = list(root.handlers), root.level, list(sys.path)
    main_thread = threading.current_thread() is threading.main_thread()
    previous = {number: signal.getsignal(number) for number in SIGNALS} if main_thread else {}
    try:
        with numeric_flags():
            if main_thread:
                stop.install()
            yield
    finally:
        progress.ignore_all()
        for number, handler in previous.items():
            signal.signal(number, handler)
        for log_handler in set(root.handlers) - set(handlers):
            log_handler.close()
        root.handlers, root.level, sys.path[:] = handlers, level, path
        logging.captureWarnings(False)
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
