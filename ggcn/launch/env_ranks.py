"""A run whose ranks another launcher starts (-m env): each process calls `launch`, and rank 0 prepares for all."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

from ggcn import environment
from ggcn.config.schema import Config
from ggcn.config.validation import validate_packages, validate_world
from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import data_check, env_rank, job
from ggcn.launch.prepare import clear_errors, freeze, is_complete, print_outcome, refuse_queued
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir

AGENT_KEY = "ggcn/port"
"""key in torchrun's store with the port at which rank 0 hosts the run's own"""
POLL_S = 0.1
"""seconds between two looks at the store"""
CONNECT_S = 2
"""seconds for one try to reach rank 0 at a port that torchrun's store passes on"""
WAIT_S = 30
"""longest wait of ranks that have nothing more to do than to end after another one"""
REFUSED = 2
"""exit code of the ranks of a run that rank 0 does not start"""


def launch(config: Config, run: RunDir, force: bool = False) -> int:
    """Trains as the rank that the environment describes; returns the exit code, 0 when the run is finished.

    Rank 0 checks and freezes the run while the others wait. Raises UserError on rank 0 for what keeps the run from
    starting, and on every rank for an environment that describes none.
    """
    info = env_rank.rank_info()
    deadline = environment.seconds("SLURM_JOB_END_TIME") if info.rank == 0 else None
    stop = StopSignal(deadline).install()
    _validate_world(config, info.world)
    info, store = _meet(info, config.cluster.timeout_s)
    with ExitStack() as locks:
        if info.rank == 0:
            code = _prepare(config, run, force, info.world, store, locks)
        else:
            code = _follow(run, store)
        if code is not None:
            return code
        code = job.exit_code(run, info, stop, "env")
        _print_outcome(run, code, store, is_main=info.rank == 0)
        return code


def _validate_world(config: Config, world: int) -> None:
    if config.lanes % world:
        raise UserError(
            f"{world} ranks were started, which cannot share lanes={config.lanes} equally; start a divisor of it"
        )
    validate_world(config, world)


def _meet(info: RankInfo, timeout_s: int) -> tuple[RankInfo, dist.Store]:
    """The rank with the port at which the ranks meet, and the store that rank 0 hosts there.

    torchrun's own store has MASTER_PORT and outlives a restart of the ranks, with all its keys; so that no rank reads
    those of an earlier start, it only passes on the port. Raises UserError when the ranks do not meet.
    """
    end = time.monotonic() + timeout_s
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return info, process_group.connect(info, timeout_s)
        agent = dist.TCPStore(info.address, info.port, None, False, timedelta(seconds=timeout_s))
        if info.rank == 0:
            info = replace(info, port=process_group.free_port())
            agent.set(AGENT_KEY, str(info.port))
            return info, process_group.connect(info, timeout_s)
        return _follow_port(info, agent, end)
    except dist.DistError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"rank {info.rank} did not meet the other {info.world - 1} at {info.address}:{info.port} ({reason}); is "
            "the port free there, and were all ranks started?"
        ) from None


def _follow_port(info: RankInfo, agent: dist.Store, end: float) -> tuple[RankInfo, dist.Store]:
    """Connects to the port that rank 0 published; that of an earlier start refuses, and is replaced soon."""
    while True:
        info = replace(info, port=int(agent.get(AGENT_KEY)))
        try:
            store = process_group.connect(info, CONNECT_S)
        except dist.DistError:
            if time.monotonic() > end:
                raise
            time.sleep(POLL_S)
            continue
        store.set_timeout(timedelta(seconds=max(end - time.monotonic(), CONNECT_S)))
        return info, store


def _prepare(
    config: Config, run: RunDir, force: bool, world: int, store: dist.Store, locks: ExitStack
) -> int | None:
    """Rank 0's part before training: checks and freezes the run, then tells the other ranks. Returns the exit code
    where there is nothing to train, else None. Raises UserError."""
    code: int | None = REFUSED
    attempt = os.environ[event_log.ATTEMPT] = uuid4().hex
    try:
        code = _freeze(config, run, force, locks)
    finally:
        store.set("plan", json.dumps({"run": str(run.path), "attempt": attempt, "code": code}))
        if code is not None:  # the store ends with this process
            _wait_until(lambda: store.add("followed", 0) >= world - 1)
    return code


def _freeze(config: Config, run: RunDir, force: bool, locks: ExitStack) -> int | None:
    """Checks and freezes the run as the other modes do; returns 0 where it is complete, else None."""
    if not force:
        run.refuse_changes(config)
    if is_complete(config, run):
        print(f"{run.path} is complete at step {config.train.steps}; raise train.steps to go on")
        return 0
    refuse_queued(run)
    validate_packages(config)
    data_check.check(config, remote=True)
    locks.enter_context(run.exclusive("launcher"))
    freeze(config, run)
    clear_errors(run)
    return None


def _follow(run: RunDir, store: dist.Store) -> int | None:
    """The other ranks' part: waits for rank 0, however long its checks take. Returns the exit code where there is
    nothing to train, else None. Raises UserError where this process belongs to another run."""
    try:
        while not store.check(["plan"]):
            time.sleep(POLL_S)
        plan = json.loads(store.get("plan"))
        store.add("followed", 1)
    except dist.DistError:
        raise UserError("rank 0 ended before the run began; see what it printed") from None
    if plan["code"] is None and plan["run"] != str(run.path):
        raise UserError(
            f"rank 0 trains {plan['run']} and this rank {run.path}; start all ranks in one folder with one command, "
            "and runs that share a machine with different MASTER_PORT"
        )
    os.environ[event_log.ATTEMPT] = plan["attempt"]
    return plan["code"]


def _print_outcome(run: RunDir, code: int, store: dist.Store, is_main: bool) -> None:
    """Rank 0 prints how the run ended; the others wait for that, since launchers kill the ranks that remain when one
    has ended with a code other than 0."""
    if is_main:
        print_outcome(run, code == 0, resume="the same command with its launcher")
        store.set("printed", "")
        return
    with suppress(dist.DistError):
        _wait_until(lambda: store.check(["printed"]))


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_S)
