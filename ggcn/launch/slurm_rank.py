"""A rank that srun starts: what submitit pickles, and the rank's numbers from SLURM's environment."""

import logging
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggcn import environment
from ggcn.errors import UserError
from ggcn.launch.job import STOPPED, exit_code
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir

if TYPE_CHECKING:
    from ggcn.distributed.rank_info import RankInfo


@dataclass(frozen=True)
class SlurmRank:
    """What submitit pickles: the run directory, and the folder from which relative paths of its config start."""

    run: str
    home: str

    def __call__(self) -> None:
        """Trains as the rank that SLURM's environment describes.

        A stop that the ranks agreed on ends with code 0, or srun would kill the ranks that are still shutting down;
        the batch script decides whether to requeue the job (ggcn/launch/requeue.py).
        """
        event_log.adopt_job()
        # only rank 0, whose node counted the deadline, for clocks of nodes differ; one rank that stops is enough
        deadline = environment.seconds("GGCN_JOB_END") if environment.integer("SLURM_PROCID") == 0 else None
        stop = StopSignal(deadline).install()
        os.chdir(self.home)
        if exit_code(RunDir(Path(self.run)), slurm_rank_info(), stop, "slurm") == STOPPED:
            logging.shutdown()
            os._exit(0)  # saves grace time, and submitit would take a return for the job's result


def slurm_rank_info() -> "RankInfo":
    """This rank's numbers and the address of rank 0, from srun's environment. Raises UserError outside of srun."""
    from ggcn.distributed.rank_info import RankInfo

    rank, world, local = (_required(f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
    nodes = environment.integer("SLURM_STEP_NUM_NODES", minimum=1) or 1
    # elements of an array have consecutive ids, restarts of their own, and a step for every start in place
    restarts, step = (environment.integer(f"SLURM_{name}") or 0 for name in ("RESTART_COUNT", "STEP_ID"))
    unique = _required("SLURM_JOB_ID") * 101 + restarts * 13 + step
    return RankInfo(rank, world, local, max(world // nodes, 1), _main_address(), 10000 + unique % 20000)


def _required(name: str) -> int:
    value = environment.integer(name)
    if value is None:
        raise UserError(
            f"{name}={os.environ.get(name, '')!r} is not a number; ranks of a job are started by srun"
        )
    return value


def first_host(nodes: str) -> str:
    """The first host of SLURM's list of nodes, gpu07 of "gpu[07-09,12],login"; empty for an empty list."""
    group = "".join(re.findall(r"\A(?:[^,\[]|\[[^\]]*\])+", nodes))  # up to a comma outside of brackets
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", group)


def _main_address() -> str:
    """The address of rank 0: its node's name, or srun's node where names do not resolve."""
    names = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    first = first_host(names) or "localhost"
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    return first
