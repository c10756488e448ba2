"""Processes that stay for a test session: starting one takes seconds, what a test runs in it a tenth of that."""

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


class RankPool:
    """Processes, of which the first `world` are the gloo ranks of a call; more are started when needed."""

    def __init__(self) -> None:
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []

    def _start_process(self) -> None:
        spawn = mp.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self.processes.append(spawn.Process(target=_serve, args=(theirs,), daemon=True))
        self.processes[-1].start()
        self.pipes.append(ours)

    def run(self, world: int, function: Callable, *arguments: Any) -> list[Any]:
        """Calls an importable `function(rank, world, *arguments)` on every rank; returns what each rank returned."""
        while len(self.pipes) < world:
            self._start_process()
        port = process_group.free_port()
        for rank, pipe in enumerate(self.pipes[:world]):
            pipe.send((RankInfo(rank, world, rank, world, port=port), function, arguments))
        answers = [torch.load(io.BytesIO(pipe.recv()), weights_only=False) for pipe in self.pipes[:world]]
        for rank, (success, answer) in enumerate(answers):
            assert success, f"rank {rank} of {world}: {answer}"
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        rank_info, function, arguments = pipe.recv()
        try:
            _join(rank_info)
            answer = (True, function(rank_info.rank, rank_info.world, *arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        pipe.send(buffer.getvalue())


def _join(rank_info: RankInfo) -> None:
    """Joins the other ranks of this call; DeepSpeed must forget those of the previous call."""
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
        comm.cdb = None
    elif dist.is_initialized():
        dist.destroy_process_group()
    process_group.init_distributed(rank_info, 60)
    torch.set_num_threads(1)
