"""One rank of a run, from joining the others to leaving them. Heavy imports wait until it runs."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from ggcn import environment, files, limits, redact
from ggcn.config.compose import load
from ggcn.config.interpolation import resolved
from ggcn.config.schema import ClusterConfig
from ggcn.console import speak_utf8
from ggcn.errors import TransientError, UserError, is_transient
from ggcn.launch.signals import Stop
from ggcn.run import code_snapshot, event_log
from ggcn.run.directory import RunDir, RunTaken
from ggcn.run.heartbeat import Heartbeat

if TYPE_CHECKING:
    import torch

    from ggcn.distributed.process_group import RankInfo
    from ggcn.training.trainer import Outcome

log = logging.getLogger("ggcn")

STOPPED = 130
"""exit code of a rank that was asked to stop before the run's end"""
MISTAKE, FAILED = 2, 1

_SIGNED = "attempt "
"""begins the last line of what a rank leaves; the rest of it is event_log.attempt()"""
PATIENCE_S = 60
"""seconds that a requeued job waits for the rank 0 of its last life to be gone"""


def run_rank(
    run: RunDir, place: "RankInfo", stop: Stop, watched: bool = True, mode: str | None = None
) -> "Outcome":
    """Trains as one rank of the run that `run` holds frozen, until its end or until `stop` wants it.

    `watched`: end the process with its stacks written when no step completes for cluster.hang_s. `mode`: how the
    run was started, local, debug or slurm; by default slurm in a job that was submitted for it, else local.
    """
    from ggcn.distributed import process_group
    from ggcn.training.trainer import Outcome, refresh_report, train

    config = resolved(load(run.config), strict=True)
    mode = mode or ("slurm" if event_log.job() else "local")
    device = _device(config.cluster, place, mode)
    first = place.rank == 0
    with _alone(run) if first else nullcontext():
        if first:
            code_snapshot.keep(run.code)  # may differ from the launcher's copy, which was edited meanwhile
            facts = {
                "mode": mode,
                "device": process_group.described(device, place),
                **_here(),
                **code_snapshot.facts(),
            }
            event_log.add(run, "start", world=place.world, step=event_log.saved_step(run), **facts)
        heart = _heart(config.cluster, run, place, watched)
        stop.lead_s = _lead(config.cluster, heart, stop)
        process_group.init_distributed(place, config.cluster.timeout_s, device)
        crew = process_group.crew()
        heart.pulse, crew.others_work = crew.pulse, heart.others_work
        crew.look_s = heart.look_s
        stop.cancelled = first and event_log.cancelled(event_log.read(run), event_log.job())
        if process_group.any_rank(stop.asked, device):  # already: then not even the first step
            outcome = Outcome(event_log.saved_step(run), finished=False)
        else:
            outcome = train(config, run, stop, device, heart)
        heart.stop()
        if first and outcome.finished:
            event_log.add(run, "finish", step=outcome.step)
        elif first:
            event_log.add(run, "stop", step=outcome.step, reason=stop.reason or "a signal to another rank")
        outcome.aside.wait()
        if first:
            refresh_report(run)  # which says how it ended
        process_group.barrier()  # a rank that is gone while rank 0 still writes would look like a failure
        process_group.shutdown()  # not after a failure: the goodbye would wait for ranks that wait for this one
        return outcome


def exit_code(run: RunDir, place: "RankInfo", stop: Stop, mode: str | None = None) -> int:
    """Trains as one rank in a process of its own; returns 0 when the run is finished, else STOPPED.

    A failure is noted for the launcher to find, and ends this process at once: a goodbye to ranks that still
    wait in a collective could hang.
    """
    log_to(run.log(place.rank), place.rank)
    for old in (run.error(place.rank), run.outage(place.rank)):
        old.unlink(missing_ok=True)
    try:
        return 0 if run_rank(run, place, stop, True, mode).finished else STOPPED
    except Exception as error:
        code = _failed(run, place.rank, limits.explained(error) or error)
    logging.shutdown()
    os._exit(code)


def _failed(run: RunDir, rank: int, error: Exception) -> int:
    """Notes why a rank failed and returns its exit code: MISTAKE for what needs a person, else FAILED."""
    if not isinstance(error, UserError | OSError):
        log.error("rank %d failed", rank, exc_info=error)
        return FAILED
    if is_transient(error):
        log.error("rank %d failed, which may pass", rank, exc_info=error)
        _note(run.outage(rank), error)
        return FAILED
    log.error("%s", error)
    _note(run.error(rank), error)
    return MISTAKE


def log_to(path: Path, rank: int) -> None:
    """Sends this process's log to a file, rank 0's warnings also to the terminal."""
    speak_utf8()
    path.parent.mkdir(parents=True, exist_ok=True)
    form = redact.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    root.handlers = [_handler(file, form, logging.INFO)]
    if rank == 0:
        short = redact.Formatter("%(levelname)s: %(message)s")
        root.addHandler(_handler(logging.StreamHandler(sys.stderr), short, logging.WARNING))
    logging.captureWarnings(True)


def _note(path: Path, error: Exception) -> None:
    """Leaves the sentence, and whose it is, where the launcher looks for it."""
    with suppress(OSError):  # which may be the very error
        files.write_text(path, f"{redact.redact(str(error))}\n{_SIGNED}{event_log.attempt()}\n")


def noted(path: Path) -> str | None:
    """The sentence that a rank of this attempt left there, or None."""
    try:
        text = files.read_text(path)
    except OSError:
        return None
    sentence, signed, attempt = text.rstrip("\n").rpartition(f"\n{_SIGNED}")
    return sentence.strip() or None if signed and attempt == str(event_log.attempt()) else None


@dataclass(frozen=True)
class SlurmRank:
    """What submitit pickles: the run directory, and the folder that relative paths of its config start from."""

    run: str
    home: str

    def __call__(self) -> None:
        """Trains as the rank that SLURM's environment describes.

        A stop that the ranks agreed on ends with code 0, or srun would kill the ranks that are still saying
        goodbye; whether the job is requeued is for the batch script to decide (ggcn/launch/requeue.py).
        """
        event_log.in_own_job()
        # the end was counted on rank 0's node, and clocks of nodes differ; one rank that stops is enough
        end = environment.seconds("GGCN_JOB_END") if environment.integer("SLURM_PROCID") == 0 else None
        stop = Stop(end).install()
        os.chdir(self.home)
        if exit_code(RunDir(Path(self.run)), slurm_place(), stop, "slurm") == STOPPED:
            logging.shutdown()
            os._exit(0)  # every second of the grace time counts; and a return would be the job's result


def slurm_place() -> "RankInfo":
    """This rank's place, from the environment that srun gives its tasks. Raises UserError where srun gave none."""
    from ggcn.distributed.process_group import RankInfo

    rank, world, local = (_given(f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
    nodes = environment.integer("SLURM_STEP_NUM_NODES", least=1) or 1
    # elements of an array have numbers in a row, and each its own count of restarts
    number = _given("SLURM_JOB_ID") * 101 + (environment.integer("SLURM_RESTART_COUNT") or 0)
    return RankInfo(rank, world, local, max(world // nodes, 1), _address(), 10000 + number % 20000)


def _given(name: str) -> int:
    value = environment.integer(name)
    if value is None:
        raise UserError(
            f"{name}={os.environ.get(name, '')!r} is no number; ranks of a job are started by srun"
        )
    return value


def _device(cluster: ClusterConfig, place: "RankInfo", mode: str) -> "torch.device":
    """The device of a rank, named in its log. Raises UserError where a job's GPUs cannot be used; a local run that
    leaves GPUs alone says so."""
    from ggcn.distributed import process_group

    if mode == "slurm":
        if cluster.gpus_per_node == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nodes may show GPUs that are somebody else's
        asked, on_node = (
            process_group.asked_for_gpus(cluster.gpus_per_node),
            process_group.gpus_of_node(cluster.gpus_per_node),
        )
        device = process_group.choose_device(place, asked, on_node)
    else:
        device = process_group.choose_device(place)
        if place.rank == 0 and (unused := process_group.unused_gpus()):
            log.warning("%s", unused)
    log.info(
        "rank %d of %d uses %s (%s)", place.rank, place.world, device, process_group.described(device, place)
    )
    return device


def _address() -> str:
    """Where rank 0 listens: its node's name, or the address of srun's node where names do not resolve."""
    from submitit.slurm.slurm import _parse_node_list

    names = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    first = next(iter(_parse_node_list(names)), "localhost")
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    return first


def _here() -> dict[str, object]:
    restart = (environment.integer("SLURM_RESTART_COUNT") or 0) if event_log.job() else 0
    asked = environment.integer("GGCN_GPUS_PER_NODE")  # by a batch script
    gpus = {} if asked is None else {"gpus_per_node": asked}
    return {"host": socket.gethostname(), "pid": os.getpid(), "restart": restart, **gpus}


def _heart(cluster: ClusterConfig, run: RunDir, place: "RankInfo", watched: bool) -> Heartbeat:
    hang_s = cluster.hang_s if watched else 0
    where = run.heartbeats, place.rank, place.world, run.stacks(place.rank)
    return Heartbeat(*where, hang_s, cluster.timeout_s, cluster.straggler)


def _lead(cluster: ClusterConfig, heart: Heartbeat, stop: Stop) -> Callable[[], float]:
    """Seconds before the job's end at which to stop: as configured or measured; before anything was measured a
    minute, or a quarter of the job."""
    half = (stop.end - time.time()) / 2 if stop.end else inf  # or a life might end at its first step
    unmeasured = min(60.0, half / 2) if stop.end else 0.0

    def lead() -> float:
        if cluster.stop_lead_s is not None:
            return cluster.stop_lead_s
        measured = heart.lead_s() if heart.longest["save"] else max(unmeasured, heart.lead_s())
        return min(measured, half)

    return lead


@contextmanager
def _alone(run: RunDir) -> Iterator[None]:
    """Holds the run as its rank 0; a requeued job waits for the one before it, which SLURM may still be ending.

    Raises RunTaken while another process has it; Outage in a job, where only a node that went down can have
    left the lock behind.
    """
    patience = time.monotonic() + PATIENCE_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(run.alone("rank"))
                break
            except RunTaken:
                if not event_log.job():
                    raise
            if time.monotonic() > patience:
                raise TransientError(
                    f"{run.path} was still locked after {PATIENCE_S} s, as by a node that went down"
                )
            time.sleep(1)
        yield


def _handler(handler: logging.Handler, form: logging.Formatter, level: int) -> logging.Handler:
    handler.setFormatter(form)
    handler.setLevel(level)
    return handler
