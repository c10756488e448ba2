"""Limits of the system that a run can reach: open files, processes, shared memory, quotas. Imports no torch."""

import errno
import logging
import os
import resource

from ggcn.errors import UserError

log = logging.getLogger(__name__)

OTHER_FILES = 48
"""open files of a rank other than its sockets to other ranks: libraries, logs, shards, loader workers"""


def raise_open_files() -> int:
    """Raises this process's soft limit on open files to the hard one; returns the soft limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems have a hard limit that no process can set
            log.debug("the soft limit on open files stays %d", soft)
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def files_needed(world: int) -> int:
    """Open files that a rank of `world` needs: gloo connects every rank to every other, with two sockets each."""
    return 2 * (world - 1) + 3 + OTHER_FILES


def require_open_files(world: int) -> None:
    """Raises the limit on open files as far as it goes; raises UserError where a rank of `world` needs more."""
    limit, needed = raise_open_files(), files_needed(world)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"each of {world} ranks needs about {needed} open files, and the hard limit is {limit} (ulimit -Hn); "
            "have it raised (nofile in /etc/security/limits.conf, or the batch system's limits), or use fewer ranks"
        )


def explained(error: BaseException) -> UserError | None:
    """A UserError that names the limit of the system behind an error; None for any other error.

    Libraries in C++ report such limits as RuntimeErrors, which only their text distinguishes.
    """
    if isinstance(error, UserError):
        return None
    code = error.errno if isinstance(error, OSError) else _code_in(str(error))
    sentence = _sentence(code, error)
    if sentence is None:
        return None
    limit = UserError(sentence)
    limit.__cause__ = error if isinstance(error, OSError) else OSError(code, str(error))
    return limit


def _code_in(text: str) -> int | None:
    """The errno that the text of a RuntimeError or MemoryError names."""
    lowered = text.lower()
    phrases = {
        errno.EMFILE: ("too many open files",),
        errno.ENFILE: ("too many open files in system",),
        errno.EAGAIN: ("can't start new thread", "cannot fork", "fork failed"),
        errno.EDQUOT: ("disk quota exceeded",),
        errno.ENOSPC: ("unable to write to file </torch_", "unable to resize file </torch_"),
    }
    matches = [(len(phrase), code) for code, each in phrases.items() for phrase in each if phrase in lowered]
    return max(matches)[1] if matches else None  # the longest phrase is the most specific one


def _sentence(code: int | None, error: BaseException) -> str | None:
    """Which limit the errno `code` means, and how to raise it or need less."""
    where = str(error.filename) if isinstance(error, OSError) and error.filename else ""
    text = f"{where} {error}"
    if "inotify" in text:
        return (
            f"the system's inotify limit is reached ({error}); raise fs.inotify.max_user_instances and "
            "max_user_watches with sysctl, or end other programs that watch files"
        )
    if code == errno.ENOSPC:
        return _shared_memory(error) if "/dev/shm" in text or "/torch_" in text else None
    sentences = {
        errno.EMFILE: f"this process may open no more files ({_limit(resource.RLIMIT_NOFILE)}; {error}); raise "
        "`ulimit -n`, or use fewer ranks or data.workers",
        errno.ENFILE: f"this machine may open no more files ({error}); raise fs.file-max with sysctl, or end "
        "other programs",
        errno.EDQUOT: f"your disk quota is used up{f' at {where}' if where else ''} ({error}); free some of it or "
        "have it raised, and run the same command again",
        errno.ENOMEM: f"memory ran out ({error}); ask for more (cluster.mem), or lower data.workers, "
        "data.prefetch or train.batch",
        errno.EAGAIN: f"no more processes or threads can be started ({_limit(resource.RLIMIT_NPROC)}; {error}); "
        "raise `ulimit -u` or the job's pids limit, or lower data.workers and OMP_NUM_THREADS",
    }
    if code == errno.EAGAIN and where:  # it means something else for a file
        return None
    return sentences.get(code) if code is not None else None


def _shared_memory(error: BaseException) -> str:
    try:
        stats = os.statvfs("/dev/shm")
        size = f", {stats.f_blocks * stats.f_frsize / 2**20:.0f} MiB in all"
    except OSError:
        size = ""
    return (
        f"/dev/shm is full{size} ({error}); make it larger (docker run --shm-size=8g, apptainer: a larger "
        "`sessiondir max size`), or lower data.workers or data.prefetch"
    )


def _limit(which: int) -> str:
    soft, hard = (
        "unlimited" if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which)
    )
    return f"limit {soft}, at most {hard}"
