"""Ranks that stay for a whole test session: to start one costs seconds, what a test asks of it a tenth."""

import io
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo


class Crew:
    """Processes, of which the first `world` act as the gloo ranks of a call; more are started when needed."""

    def __init__(self) -> None:
        self.lines: list[Connection] = []
        self.processes: list[BaseProcess] = []

    def _hire(self) -> None:
        spawn = mp.get_context("spawn")
        mine, yours = spawn.Pipe()
        self.processes.append(spawn.Process(target=_serve, args=(yours,), daemon=True))
        self.processes[-1].start()
        self.lines.append(mine)

    def run(self, world: int, function: Callable, *arguments: Any) -> list[Any]:
        """`function(rank, world, *arguments)` on every rank, an importable function; what each returned."""
        while len(self.lines) < world:
            self._hire()
        port = process_group.free_port()
        for rank, line in enumerate(self.lines[:world]):
            line.send((RankInfo(rank, world, rank, world, port=port), function, arguments))
        answers = [torch.load(io.BytesIO(line.recv()), weights_only=False) for line in self.lines[:world]]
        for rank, (fine, answer) in enumerate(answers):
            assert fine, f"rank {rank} of {world}: {answer}"
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(line: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        place, function, arguments = line.recv()
        try:
            _join(place)
            answer = (True, function(place.rank, place.world, *arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        line.send(buffer.getvalue())


def _join(place: RankInfo) -> None:
    """Meets the other ranks of this call; DeepSpeed must forget those of the call before."""
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
        comm.cdb = None
    elif dist.is_initialized():
        dist.destroy_process_group()
    process_group.init_distributed(place, 60)
    torch.set_num_threads(1)
