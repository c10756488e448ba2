"""A cache of complete shards on the node's own disk, shared by several processes without a server.

They coordinate by locks on the files alone: a reader holds a shared lock, a process that downloads or evicts a file an
exclusive one, and a lock ends with its process. Where the cache's file system has no locks, still only one process
downloads a shard, and a file that is evicted while another process reads it stays readable, because it is open.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ggcn import locks
from ggcn.data.remote import RemoteFile, download
from ggcn.errors import UserError, is_transient

LOCK = ".lock"


class ShardCache:
    """A folder of shards, named by their sha256, of at most `limit` bytes; safe for many processes."""

    def __init__(self, folder: Path, limit: int, allow_pipe: bool = False) -> None:
        """`allow_pipe`: files may be the output of commands. Raises UserError when the folder cannot be made."""
        self.folder, self.limit, self.allow_pipe = folder, limit, allow_pipe
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={folder} cannot be made ({error}); name another folder"
            ) from None
        self.lockable = locks.supported(folder / LOCK)

    def open(self, shard: RemoteFile) -> int | None:
        """Opens the shard's file, downloaded if it is not cached; it is not evicted until it is closed.

        Returns None when files in use leave no room for it. Raises OSError when the download fails or is damaged.
        """
        path = self.folder / shard.sha256
        while shard.bytes <= self.limit:
            file = open_locked(path, fcntl.LOCK_SH)
            if file is not None:
                with contextlib.suppress(PermissionError):  # another user's
                    os.utime(file)  # the time of last use: eviction begins with the oldest
                return file
            with self._naming_folder(), self._only_writer(path):
                if not self._ensure_downloaded(shard, path):
                    return None
        return None

    def _ensure_downloaded(self, shard: RemoteFile, path: Path) -> bool:
        """Downloads the shard, or waits while another process does; False when there is no room."""
        part = path.with_suffix(".part")
        self.folder.mkdir(parents=True, exist_ok=True)  # the disk may have been cleared since
        file = open_locked(part, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT)
        if file is None:
            _wait_for_writer(part)
            return True
        try:
            if path.exists():
                return True
            if not self._reserve(file, part, shard.bytes):
                return False
            download(shard, file, self.allow_pipe)
            with self._exclusive():  # or a process that adds up sizes might see it under both names or none
                os.replace(part, path)
            return True
        finally:
            if _is_same_file(file, part):
                part.unlink()
            os.close(file)

    def _reserve(self, file: int, part: Path, size: int) -> bool:
        """Evicts until `size` bytes are free and allocates them to `file`; False when there is no room."""
        with self._exclusive():
            others = sorted((e for e in self._files() if e[2] != part), key=lambda entry: entry[0])
            free = self.limit - sum(entry[1] for entry in others)
            for _, bytes_, path in others:
                if free < size and _evict(path):
                    free += bytes_
            if free >= size:
                os.ftruncate(file, size)
            return free >= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, those of killed downloads included."""
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime, status.st_size, path

    def _exclusive(self) -> contextlib.AbstractContextManager[None]:
        return locks.exclusive_lock(self.folder / LOCK, wait=True, with_children=True)

    @contextlib.contextmanager
    def _only_writer(self, path: Path) -> Iterator[None]:
        """Where files cannot be locked, waits until no other process downloads the shard at `path`."""
        with contextlib.ExitStack() as held:
            if not self.lockable:
                held.enter_context(locks.lock_file(_writer_lock(path), wait=True))
            yield

    @contextlib.contextmanager
    def _naming_folder(self) -> Iterator[None]:
        """Turns a permanent OSError in the folder into a UserError that names it."""
        try:
            yield
        except OSError as error:
            if str(error.filename).startswith(str(self.folder)) and not is_transient(error):
                raise UserError(
                    f"data.cache_dir={self.folder} cannot be used ({error.strerror}: {error.filename}); name another "
                    "folder"
                ) from error
            raise


def open_locked(path: Path, mode: int, flags: int = os.O_RDONLY) -> int | None:
    """Opens and locks the file at `path`; where there are no locks, only opens it.

    Returns None when it is missing, was removed before the lock was acquired, or is locked by another process.
    """
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        locks.flock(file, mode, path)
        if _is_same_file(file, path):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _writer_lock(path: Path) -> Path:
    """The lock file for downloads of the shard at `path`, where files themselves cannot be locked."""
    return path.with_name(f".{path.stem}.writer")


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _wait_for_writer(part: Path) -> None:
    """Returns when no process writes the file, by a shared lock, since its writer keeps one for reading."""
    file = open_locked(part, fcntl.LOCK_SH)
    if file is not None:
        os.close(file)


def _evict(path: Path) -> bool:
    """Removes a file of the cache unless a process uses it; returns whether it is gone."""
    if path.name.startswith("."):
        return False  # a lock
    with contextlib.ExitStack() as held:
        try:
            if path.suffix == ".part" and _writer_lock(path).exists():
                held.enter_context(locks.lock_file(_writer_lock(path)))
            # opened for writing, or NFS refuses the lock
            file = open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR)
        except (locks.LockTaken, PermissionError):  # the latter for another user's
            return False
        if file is None:
            return False
        path.unlink(missing_ok=True)
        os.close(file)
        return True
