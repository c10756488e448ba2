"""Locks between processes, on file systems with locks and without.

`exclusive_lock` asks the kernel for a lock. Where a file system has none (Lustre without -o flock, NFS without its lock
daemon, some FUSE mounts), a file made with O_EXCL takes its place: it names its process, which rewrites it every
BEAT_S seconds. It is taken over when that process is seen to be dead on this machine or, as seen from another
machine, has left it unchanged for STALE_S seconds of the observer's own clock; no two machines' clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

log = logging.getLogger(__name__)

UNSUPPORTED = {
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EIO,
    errno.EPERM,
}
"""what file systems without locks answer; EIO comes from NFS whose lock daemon is unreachable, and whoever meets a
broken disk hears it again from the file that takes the lock's place"""

BEAT_S = 2.0
"""seconds between two rewrites of a lock file"""
STALE_S = 60.0
"""seconds without a rewrite after which another machine takes a lock file over: longer than network file systems
cache a file's content (NFS: up to 60 s only for attributes of files that do not change) and than a busy node stalls"""
POLL_S = 0.2

WARNED = "GGCN_NO_LOCKS"
"""environment variable with the folders that were warned of, so that child processes do not repeat it"""


class Taken(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = False, with_children: bool = False) -> Iterator[None]:
    """Holds the file at `path`, which is made if need be, for this process; for its forked children too only if
    `with_children`.

    Raises Taken while another process has it, or waits for that to end if `wait`. Raises OSError when the file
    cannot be made.
    """
    with contextlib.ExitStack() as held:
        file = held.enter_context(
            path.open("a", encoding="utf-8")
        )  # for writing, or NFS refuses an exclusive lock
        locked = _kernel_lock(file.fileno(), path, wait, with_children)
        instead = path.with_name(f"{path.name}.held")
        if not locked or instead.exists():  # made by a machine that mounts the folder without locks
            held.enter_context(stand_in(instead, wait))
        yield


def flock(file: int, mode: int, path: Path) -> bool:
    """flock(2) on an open file; returns False, after a warning that names the folder of `path`, where there are no
    locks. Raises BlockingIOError while another process has it."""
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if not unsupported(error):
            raise
        warn(path.parent, error)
        return False
    return True


def supported(path: Path) -> bool:
    """Whether the folder of the lock file at `path`, which is made, has locks; warns where it has none. A folder that
    may not be written counts as one that has."""
    try:
        with path.open("a", encoding="utf-8") as file:
            return flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB, path)
    except OSError:
        return True


def unsupported(error: OSError) -> bool:
    """Whether a lock was refused because the file system has none."""
    return not isinstance(error, BlockingIOError) and error.errno in UNSUPPORTED


def warn(folder: Path, error: OSError) -> None:
    """Says once per folder, for this process and those it starts, that it has no locks."""
    known = os.environ.get(WARNED, "").split(os.pathsep)
    if str(folder.absolute()) in known:
        return
    os.environ[WARNED] = os.pathsep.join([*filter(None, known), str(folder.absolute())])
    log.warning(
        "%s lies on a file system without locks (%s); lock files with a heartbeat take their place",
        folder,
        error.strerror or error,
    )


def _kernel_lock(file: int, path: Path, wait: bool, with_children: bool) -> bool:
    """Takes a lock that goes with its process however it ends; False where there are none.

    lockf is the process's own; flock is shared with forked children, such as loader workers that outlive a killed
    rank.
    """
    lock = fcntl.flock if with_children else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Taken(str(path)) from None
        if not unsupported(error):
            raise
        warn(path.parent, error)
        return False
    return True


@contextlib.contextmanager
def stand_in(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock for this process, without the kernel's help, by making the file at `path`; see the module's words.

    Raises Taken while another process has it, or waits for that to end if `wait`; OSError when it cannot be made.
    """
    owner = {**_machine(), "pid": os.getpid(), "born": _born(os.getpid()), "token": uuid4().hex}
    file = _create(path, owner, wait)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, file, owner, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        if os.getpid() == owner["pid"]:  # and not a forked child on its way out
            over.set()
            beating.join()
            if _is_at(file, path):
                path.unlink(missing_ok=True)
            os.close(file)


def _create(path: Path, owner: dict[str, Any], wait: bool) -> int:
    """Makes the lock file, in place of one whose process is gone; returns its descriptor."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                seen = path.read_bytes()
                if _abandoned(path, seen):
                    _remove(path, seen)
                elif not wait:
                    raise Taken(str(path)) from None
                else:
                    time.sleep(POLL_S)
    _write(file, owner, 0)
    return file


def _abandoned(path: Path, seen: bytes) -> bool:
    """Whether the process that made the lock file, which read `seen`, is gone. Where only time can tell, watches the
    file, and returns False as soon as it changes. Raises FileNotFoundError when it is removed meanwhile."""
    until = time.monotonic() + STALE_S
    while time.monotonic() < until:
        owner = _parse(seen)
        if _is_here(owner, path):
            return not _alive(owner)
        time.sleep(POLL_S)
        if path.read_bytes() != seen:
            return False
    return True


def _is_here(owner: dict[str, Any], path: Path) -> bool:
    """Whether the lock file was made on this machine, and is no copy that came with its folder."""
    here = all(owner.get(key) == value for key, value in _machine().items())
    return here and owner.get("inode") == path.stat().st_ino


def _remove(path: Path, seen: bytes) -> None:
    """Removes the abandoned lock file that read `seen`; one that another process made meanwhile is put back."""
    aside = path.with_name(f".tmp-{uuid4().hex}-{path.name}")
    os.rename(path, aside)
    if aside.read_bytes() != seen:
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(aside, path)
    aside.unlink(missing_ok=True)


def _beat(path: Path, file: int, owner: dict[str, Any], over: threading.Event) -> None:
    """Rewrites the lock file until it is over; a process whose lock was taken over, as after it had been suspended,
    is asked to stop."""
    count = 0
    while not over.wait(BEAT_S):
        count += 1
        try:
            mine = _is_at(file, path)
            if mine:
                _write(file, owner, count)
        except OSError as error:  # may pass; if it does not, others see that the file no longer changes
            log.debug("%s was not rewritten (%s)", path, error)
            continue
        if not mine:
            log.error("%s was taken over by another process, as from one that stood still; stopping", path)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _write(file: int, owner: dict[str, Any], count: int) -> None:
    """Every line of an owner has the same length, so that none is seen half old and half new."""
    line = json.dumps({**owner, "inode": os.fstat(file).st_ino, "beat": f"{count:012d}"})
    os.pwrite(file, line.encode() + b"\n", 0)
    os.fsync(file)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _machine() -> dict[str, str]:
    """What a process id is unique in: a host since its boot, and a name space of processes in it."""
    found = {"host": socket.gethostname()}
    for name, look in (
        ("boot", lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()),
        ("space", lambda: os.readlink("/proc/self/ns/pid")),
    ):
        with contextlib.suppress(OSError):
            found[name] = look()
    return found


def _born(pid: int) -> str:
    """When a process began, in ticks since the boot; "" when it is gone, is a zombie, or cannot be seen."""
    try:
        words = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


def _alive(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is still the one that made the lock file."""
    pid = owner["pid"]
    if Path(f"/proc/{pid}").exists():
        return _born(pid) == owner["born"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, where these are hidden
        return True
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
