"""Locks between processes, on file systems with and without support for locks.

`exclusive_lock` asks the kernel for a lock. Where a file system has none (Lustre without -o flock, NFS without its lock
daemon, some FUSE mounts), a lock file made with O_EXCL replaces it: it names its process, which rewrites it every
REFRESH_S seconds. Another process takes it over when its owner is dead on the same machine or, on another machine,
when the file has not changed for STALE_S seconds of the observer's own clock; clocks of machines are never compared.
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
"""errors of file systems without locks. EIO comes from NFS whose lock daemon is unreachable; a broken disk fails again
when the lock file is made"""

REFRESH_S = 2.0
"""seconds between two rewrites of a lock file"""
STALE_S = 60.0
"""seconds without a rewrite after which another machine takes a lock file over: longer than network file systems
cache a file's content (NFS: up to 60 s only for attributes of files that do not change) and than a busy node stalls"""
POLL_S = 0.2
"""seconds between two looks at a lock file of another process"""

WARNED = "GGCN_NO_LOCKS"
"""environment variable with the folders that were warned about, so that child processes do not repeat it"""


class LockTaken(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = False, with_children: bool = False) -> Iterator[None]:
    """Locks the file at `path`, creating it if needed, for this process; `with_children` shares the lock with forked
    children.

    Raises LockTaken while another process has it, or waits for the lock if `wait`. Raises OSError when the file
    cannot be made.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(
            path.open("a", encoding="utf-8")
        )  # for writing, or NFS refuses an exclusive lock
        locked = _kernel_lock(file.fileno(), path, wait, with_children)
        substitute = path.with_name(f"{path.name}.held")
        if not locked or substitute.exists():  # made by a machine that mounts the folder without locks
            stack.enter_context(lock_file(substitute, wait))
        yield


def flock(file: int, mode: int, path: Path) -> bool:
    """Calls flock(2) on an open file; returns False, after a warning that names the folder of `path`, where there are
    no locks. Raises BlockingIOError while another process has the lock."""
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if not unsupported(error):
            raise
        warn(path.parent, error)
        return False
    return True


def supported(path: Path) -> bool:
    """Whether the folder of the lock file at `path`, which is created, has locks; warns where it has none.

    A folder that cannot be written counts as one that has.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            return flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB, path)
    except OSError:
        return True


def unsupported(error: OSError) -> bool:
    """Whether a lock was refused because the file system has none."""
    return not isinstance(error, BlockingIOError) and error.errno in UNSUPPORTED


def warn(folder: Path, error: OSError) -> None:
    """Warns once per folder, for this process and its children, that the folder has no locks."""
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
    """Takes a lock that is released when its process ends, however it ends; returns False where there are no locks.

    lockf belongs to the process alone; flock is shared with forked children, such as loader workers that outlive a
    killed rank.
    """
    lock = fcntl.flock if with_children else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise LockTaken(str(path)) from None
        if not unsupported(error):
            raise
        warn(path.parent, error)
        return False
    return True


@contextlib.contextmanager
def lock_file(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock without the kernel's help by creating the file at `path`; see the module's docstring.

    Raises LockTaken while another process has it, or waits for the lock if `wait`; OSError when it cannot be made.
    """
    owner = {**_machine(), "pid": os.getpid(), "born": _start_time(os.getpid()), "token": uuid4().hex}
    file = _create(path, owner, wait)
    released = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, file, owner, released), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        if os.getpid() == owner["pid"]:  # and not a forked child on its way out
            released.set()
            refresher.join()
            if _is_open(file, path):
                path.unlink(missing_ok=True)
            os.close(file)


def _create(path: Path, owner: dict[str, Any], wait: bool) -> int:
    """Creates the lock file, replacing one whose owner is gone; returns its descriptor."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                content = path.read_bytes()
                if _abandoned(path, content):
                    _remove(path, content)
                elif not wait:
                    raise LockTaken(str(path)) from None
                else:
                    time.sleep(POLL_S)
    _write(file, owner, 0)
    return file


def _abandoned(path: Path, content: bytes) -> bool:
    """Whether the owner of the lock file with this `content` is gone. Watches the file of another machine for STALE_S
    seconds, and returns False as soon as it changes. Raises FileNotFoundError when it is removed meanwhile."""
    end = time.monotonic() + STALE_S
    while time.monotonic() < end:
        owner = _parse(content)
        if _on_this_machine(owner, path):
            return not _alive(owner)
        time.sleep(POLL_S)
        if path.read_bytes() != content:
            return False
    return True


def _on_this_machine(owner: dict[str, Any], path: Path) -> bool:
    """Whether the lock file was made on this machine, and is not a copy that came with its folder."""
    same = all(owner.get(key) == value for key, value in _machine().items())
    return same and owner.get("inode") == path.stat().st_ino


def _remove(path: Path, content: bytes) -> None:
    """Removes the abandoned lock file with this `content`; restores one that another process made meanwhile."""
    moved = path.with_name(f".tmp-{uuid4().hex}-{path.name}")
    os.rename(path, moved)
    if moved.read_bytes() != content:
        try:
            os.link(moved, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(moved, path)
    moved.unlink(missing_ok=True)


def _refresh(path: Path, file: int, owner: dict[str, Any], released: threading.Event) -> None:
    """Rewrites the lock file until it is released. A process whose lock was taken over, for example because it was
    suspended, sends itself SIGTERM."""
    count = 0
    while not released.wait(REFRESH_S):
        count += 1
        try:
            owned = _is_open(file, path)
            if owned:
                _write(file, owner, count)
        except (
            OSError
        ) as error:  # may be transient; if not, other processes see that the file no longer changes
            log.debug("%s was not rewritten (%s)", path, error)
            continue
        if not owned:
            log.error("%s was taken over by another process after this one was suspended; stopping", path)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _write(file: int, owner: dict[str, Any], count: int) -> None:
    """Writes the owner and a count, always of the same length, so that no reader sees a mixture of two writes."""
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
    """The scope in which a process id is unique: a host since its boot, and a PID namespace."""
    machine = {"host": socket.gethostname()}
    for name, read in (
        ("boot", lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()),
        ("space", lambda: os.readlink("/proc/self/ns/pid")),
    ):
        with contextlib.suppress(OSError):
            machine[name] = read()
    return machine


def _start_time(pid: int) -> str:
    """When a process started, in ticks since the boot; "" when it is gone, a zombie, or not visible."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _alive(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is still the one that made the lock file."""
    pid = owner["pid"]
    if Path(f"/proc/{pid}").exists():
        return _start_time(pid) == owner["born"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, where these are hidden
        return True
    return True


def _is_open(file: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
