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
from ggcn.launch import job
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir

GRACE_S = 20
"""seconds that the other ranks have to end after one failed"""


def count(wanted: int | None, lanes: int) -> int:
    """Ranks to start: as configured, else one per GPU, else two where cores and lanes allow it.

    Two ranks use the cores of a CPU better than the threads of one, since small layers do not thread well.
    """
    spare = 2 if len(os.sched_getaffinity(0)) > 1 and lanes % 2 == 0 else 1
    return wanted if wanted is not None else torch.cuda.device_count() or spare


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
    for old in (path for kind in ("error", "transient", "stacks") for path in run.logs.glob(f"*.{kind}")):
        old.unlink()
    os.environ[event_log.ATTEMPT] = uuid4().hex
    with Messenger() as messenger:
        place = (str(run.path), world, free_port())
        context = mp.start_processes(_rank, args=place, nprocs=world, join=False)
        messenger.serve(context)
        return _wait(context, run, messenger)


def _rank(number: int, path: str, world: int, port: int) -> None:
    stop = StopSignal().install()
    run = RunDir(Path(path))
    if number > 0:
        _quiet(run.log(number))
    sys.exit(job.exit_code(run, RankInfo(number, world, number, world, port=port), stop, "local"))


def _quiet(path: Path) -> None:
    """Sends whatever this process prints into its log: one display belongs to rank 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class Messenger:
    """TERM, USR2 and Ctrl-C reach the ranks, which stop at the same step; this process only waits.

    A second Ctrl-C ends the ranks at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> "Messenger":
        self.old = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def serve(self, context: ProcessContext) -> None:
        """From now on signals go to these ranks, and those that came before go now."""
        self.processes = context.processes
        for number in self.asked[:1]:
            self._forward(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        hurry = self.asked.count(signal.SIGINT) > 1
        self._forward(signal.SIGKILL if hurry else number)

    def _forward(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)


def _wait(context: ProcessContext, run: RunDir, messenger: Messenger) -> int:
    try:
        while not context.join(grace_period=GRACE_S):
            pass
    except ProcessException as failure:
        code = getattr(failure, "exit_code", 1)
        if code == job.STOPPED or (messenger.asked and code < 0):
            return job.STOPPED
        raise UserError(_explain(run, failure.error_index, code)) from None
    return 0


def _explain(run: RunDir, number: int, code: int) -> str:
    """What happened to the rank that failed first: its own words, else how it ended."""
    own = (run.error(number), run.transient_error(number))
    others = (*sorted(run.logs.glob("*.error")), *sorted(run.logs.glob("*.transient")))
    for path in (*own, *(others if code > 0 else ())):
        if sentence := job.noted(path):
            return sentence
    if any(path.stat().st_size for path in run.logs.glob("*.stacks")):
        return f"no step was completed for cluster.hang_s; where each rank was: {run.logs}/*.stacks"
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    return f"rank {number} {how}; see {run.log(number)}; the same command goes on from the last checkpoint"
