"""Ranks as processes of this machine, in the foreground."""

import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from uuid import uuid4

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext, ProcessException

from ggcn import limits
from ggcn.distributed.process_group import free_port
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import job, rank_errors
from ggcn.launch.prepare import clear_errors
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir

GRACE_S = 20
"""seconds that the other ranks have to end after one failed"""


def world_size(configured: int | None, lanes: int) -> int:
    """The number of ranks to start: as configured, else one per GPU, else two where cores and lanes allow it.

    Two ranks use the cores of a CPU better than the threads of one, since small layers do not thread well.
    """
    on_cpu = 2 if len(os.sched_getaffinity(0)) > 1 and lanes % 2 == 0 else 1
    return configured if configured is not None else torch.cuda.device_count() or on_cpu


def launch(run: RunDir, world: int) -> int:
    """Runs `world` ranks to their end; returns the exit code, 0 when the run is finished.

    Raises UserError with the sentence of the first rank that failed.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < world:
        raise UserError(
            f"{world} ranks need as many GPUs and there are {gpus}; lower cluster.ranks, "
            "or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    limits.require_open_files(world)
    clear_errors(run)
    os.environ[event_log.ATTEMPT] = uuid4().hex
    with SignalForwarder() as forwarder:
        args = (str(run.path), world, free_port())
        context = mp.start_processes(_rank, args=args, nprocs=world, join=False)
        forwarder.forward_to(context)
        return _wait(context, run, forwarder)


def _rank(rank: int, path: str, world: int, port: int) -> None:
    stop = StopSignal().install()
    run = RunDir(Path(path))
    if rank > 0:
        _redirect_output(run.log(rank))
    sys.exit(job.exit_code(run, RankInfo(rank, world, rank, world, port=port), stop, "local"))


def _redirect_output(path: Path) -> None:
    """Sends whatever this process prints to its log; only rank 0 prints to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class SignalForwarder:
    """Forwards TERM, USR2 and Ctrl-C to the ranks, which stop at the same step; this process only waits.

    A second Ctrl-C kills the ranks.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: list[int] = []
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> "SignalForwarder":
        self.previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def forward_to(self, context: ProcessContext) -> None:
        """Forwards signals to these ranks from now on, and one that was received before."""
        self.processes = context.processes
        for number in self.received[:1]:
            self._forward(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        kill = self.received.count(signal.SIGINT) > 1
        self._forward(signal.SIGKILL if kill else number)

    def _forward(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)


def _wait(context: ProcessContext, run: RunDir, forwarder: SignalForwarder) -> int:
    try:
        while not context.join(grace_period=GRACE_S):
            pass
    except ProcessException as failure:
        code = getattr(failure, "exit_code", 1)
        if code == job.STOPPED or (forwarder.received and code < 0):
            return job.STOPPED
        raise UserError(_failure(run, failure.error_index, code)) from None
    return 0


def _failure(run: RunDir, rank: int, code: int) -> str:
    """Why the first rank failed: its own error or that of another rank, else its exit code."""
    own = (run.error(rank), run.transient_error(rank))
    others = (*sorted(run.logs.glob("*.error")), *sorted(run.logs.glob("*.transient")))
    for path in (*own, *(others if code > 0 else ())):
        if sentence := rank_errors.read(path):
            return sentence
    if any(path.stat().st_size for path in run.logs.glob("*.stacks")):
        return f"no step was completed for cluster.hang_s; where each rank was: {run.logs}/*.stacks"
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    return f"rank {rank} {how}; see {run.log(rank)}; the same command resumes from the last checkpoint"
