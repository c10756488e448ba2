"""One rank of a run, from joining the other ranks to leaving them. Heavy imports are delayed until it runs."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from ggcn import environment, limits
from ggcn.config.compose import load
from ggcn.config.interpolation import resolved
from ggcn.config.schema import ClusterConfig, Config
from ggcn.errors import TransientError, UserError, is_transient
from ggcn.launch import rank_errors, rank_log
from ggcn.launch.signals import StopSignal
from ggcn.run import code_snapshot, event_log, init_source, own_code
from ggcn.run.directory import RunDir, RunTaken
from ggcn.run.heartbeat import Heartbeat
from ggcn.run.watchdog import Watchdog

if TYPE_CHECKING:
    import torch

    from ggcn.distributed.rank_info import RankInfo
    from ggcn.training.trainer import TrainResult

log = logging.getLogger("ggcn")

STOPPED = 130
"""exit code of a rank that was asked to stop before the run's end"""
USER_ERROR, FAILED = 2, 1
"""exit codes of a rank whose error the user must fix, and of one that failed otherwise"""
LOCK_TIMEOUT_S = 60
"""seconds that a requeued job waits for rank 0 of its last attempt to release the run"""


def run_rank(
    run: RunDir, rank_info: "RankInfo", stop: StopSignal, watched: bool = True, mode: str | None = None
) -> "TrainResult":
    """Trains as one rank of the run with its frozen config, until its end or until `stop` is requested.

    `watched`: end the process, after writing its stack traces, when no step completes for cluster.hang_s. `mode`: how
    the run was started, local, debug, env or slurm; by default slurm in a job that a launcher submitted, else local.
    Returns the last saved step, and whether the run is finished.
    """
    from ggcn.distributed import process_group
    from ggcn.training.background import refresh_report
    from ggcn.training.trainer import TrainResult, train

    config = resolved(load(run.config), strict=True)
    own_code.use(run.path)
    mode = mode or ("slurm" if event_log.job() else "local")
    choose = partial(_choose_device, config.cluster, rank_info, mode)
    device = _check_nodes(config, run, rank_info, choose) if mode == "slurm" else choose()
    is_main = rank_info.rank == 0
    with _run_lock(run) if is_main else nullcontext():
        if is_main:
            _log_start(run, rank_info, device, mode)
        heart = _heartbeat(config.cluster, run, rank_info, watched)
        stop.stop_lead_s = _stop_lead(config.cluster, heart, stop)
        process_group.init_distributed(rank_info, config.cluster.timeout_s, device)
        barrier = process_group.progress_barrier()
        watchdog = heart.watchdog
        watchdog.notify_waiting_ranks, barrier.on_progress = barrier.report_progress, watchdog.remote_progress
        barrier.poll_s = watchdog.poll_s
        stop.cancelled = is_main and event_log.cancelled(event_log.read(run), event_log.job())
        if process_group.any_rank(stop.received, device):  # before the first step
            outcome = TrainResult(event_log.saved_step(run), finished=False)
        else:
            outcome = train(config, run, stop, device, heart)
        heart.stop()
        if is_main:
            _log_end(run, outcome, stop)
        outcome.background.wait()
        if is_main:
            refresh_report(run)  # which says how it ended
        process_group.barrier()  # a rank that left while rank 0 still writes would look like a failure
        process_group.shutdown()  # not after a failure: it would wait for ranks that wait for this one
        return outcome


def exit_code(run: RunDir, rank_info: "RankInfo", stop: StopSignal, mode: str | None = None) -> int:
    """Trains as one rank in a process of its own; returns 0 when the run is finished, else STOPPED.

    After a failure it writes the error file for the launcher and exits this process at once: leaving the process
    group could hang, because other ranks may still wait in a collective.
    """
    rank = rank_info.rank
    rank_log.configure(run.log(rank), rank, own_terminal=mode == "env")
    for path in (run.error(rank), run.transient_error(rank)):
        path.unlink(missing_ok=True)
    try:
        return 0 if run_rank(run, rank_info, stop, True, mode).finished else STOPPED
    except Exception as error:
        code = _log_failure(run, rank, limits.explained(error) or error)
    logging.shutdown()
    os._exit(code)


def _log_failure(run: RunDir, rank: int, error: Exception) -> int:
    """Logs why a rank failed and returns its exit code: USER_ERROR for what the user must fix, else FAILED."""
    if not isinstance(error, UserError | OSError):
        log.error("rank %d failed", rank, exc_info=error)
        return FAILED
    if is_transient(error):
        log.error("rank %d failed; a restart may help", rank, exc_info=error)
        rank_errors.write(run.transient_error(rank), error)
        return FAILED
    log.error("%s", error)
    rank_errors.write(run.error(rank), error)
    return USER_ERROR


def _choose_device(cluster: ClusterConfig, rank_info: "RankInfo", mode: str) -> "torch.device":
    """The device of a rank, which it logs. Raises UserError where a job's GPUs cannot be used; warns where a local run
    leaves GPUs unused."""
    from ggcn.distributed import devices

    if mode == "slurm":
        if cluster.gpus_per_node == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nodes may show GPUs of other jobs
        request = devices.gpu_request(cluster.gpus_per_node)
        on_node = devices.gpus_on_node(cluster.gpus_per_node)
        device = devices.choose_device(rank_info, request, on_node)
    else:
        device = devices.choose_device(rank_info)
        if rank_info.rank == 0 and (warning := devices.unused_gpus_warning()):
            log.warning("%s", warning)
    summary = devices.device_summary(device, rank_info)
    log.info("rank %d of %d uses %s (%s)", rank_info.rank, rank_info.world, device, summary)
    return device


def _check_nodes(
    config: Config, run: RunDir, rank_info: "RankInfo", choose: Callable[[], "torch.device"]
) -> "torch.device":
    """The device of a rank of a job whose nodes have passed their check; see ggcn.launch.node_check."""
    import torch

    from ggcn.launch import node_check

    if torch.version.cuda is None and torch.version.hip is None:
        choose()  # raises where GPUs were requested, which is no node's fault
    return node_check.check(config, run, rank_info, choose)


def _log_start(run: RunDir, rank_info: "RankInfo", device: "torch.device", mode: str) -> None:
    """Keeps the code, and logs the start of the attempt; see ggcn.run.event_log."""
    from ggcn.distributed import devices

    code_snapshot.save(run.code)  # differs from the launcher's copy if the code was edited meanwhile
    gpus = environment.integer("GGCN_GPUS_PER_NODE")  # set by a batch script
    facts = {
        "mode": mode,
        "device": devices.device_summary(device, rank_info),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "restart": (environment.integer("SLURM_RESTART_COUNT") or 0) if event_log.job() else 0,
        **({} if gpus is None else {"gpus_per_node": gpus}),
        **({"init": init} if (init := init_source.facts(run.path)) else {}),
        **({"own": own} if (own := own_code.facts(run.path)) else {}),
        **code_snapshot.facts(),
    }
    event_log.add(run, "start", world=rank_info.world, step=event_log.saved_step(run), **facts)


def _log_end(run: RunDir, outcome: "TrainResult", stop: StopSignal) -> None:
    if outcome.finished:
        event_log.add(run, "finish", step=outcome.step)
    else:
        event_log.add(run, "stop", step=outcome.step, reason=stop.reason or "a signal to another rank")


def _heartbeat(cluster: ClusterConfig, run: RunDir, rank_info: "RankInfo", watched: bool) -> Heartbeat:
    hang_s = cluster.hang_s if watched else 0
    watchdog = Watchdog(run.stacks(rank_info.rank), hang_s, cluster.timeout_s)
    return Heartbeat(run.heartbeats, rank_info.rank, rank_info.world, watchdog, cluster.straggler)


def _stop_lead(cluster: ClusterConfig, heart: Heartbeat, stop: StopSignal) -> Callable[[], float]:
    """The function that returns the seconds before the deadline at which to stop: as configured, else as measured.

    Before anything was measured it is a minute or a quarter of the job, and always at most half of the job, so that an
    attempt does not end at its first step.
    """
    half = (stop.deadline - time.time()) / 2 if stop.deadline else inf
    unmeasured = min(60.0, half / 2) if stop.deadline else 0.0

    def stop_lead_s() -> float:
        if cluster.stop_lead_s is not None:
            return cluster.stop_lead_s
        measured = (
            heart.stop_lead_s() if heart.longest["checkpoint"] else max(unmeasured, heart.stop_lead_s())
        )
        return min(measured, half)

    return stop_lead_s


@contextmanager
def _run_lock(run: RunDir) -> Iterator[None]:
    """Locks the run for its rank 0; a requeued job waits for its last attempt, which SLURM may still be ending.

    Raises RunTaken while another process has it; in a job TransientError, because there only a node that went down
    can have left the lock behind.
    """
    end = time.monotonic() + LOCK_TIMEOUT_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run.exclusive("rank"))
                break
            except RunTaken:
                if not event_log.job():
                    raise
            if time.monotonic() > end:
                raise TransientError(
                    f"{run.path} was still locked after {LOCK_TIMEOUT_S} s, as by a node that went down"
                )
            time.sleep(1)
        yield
