"""Files that appear whole or not at all."""

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ggcn import progress

SYNC_BYTES = 256 << 20
"""of a large file are forced to the disk at once, so that no single fsync takes long"""
WRITE_BYTES = 16 << 20


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, to be read. Raises OSError, at once too for a pipe, a socket or a device, which might never say
    anything."""
    if other := type_of(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, f"{other}, not a file", str(path))
    return open(path, "rb", opener=_without_waiting)  # should a pipe take the file's place meanwhile


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8; what is none becomes question marks. Raises OSError as `open_regular`
    does."""
    return read_bytes(path).decode(errors="replace")


def type_of(mode: int) -> str:
    """What a path that is no regular file leads to, in words, by the mode of os.stat; empty for a regular file."""
    types = {
        stat.S_ISREG: "",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in types.items() if test(mode)), "a device")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def sync(path: Path) -> None:
    """Forces a file's or folder's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, listed: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it replaces `path` at once, on error it vanishes.

    Not `listed`: the folder is not forced to the disk as well, and a power cut may take the file back.
    """
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        if listed:
            sync(path.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == os.fspath(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def growing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write a large value to, which reports progress as it grows and never leaves much to force to the
    disk at its end."""
    with _Growing(path) as file:
        yield cast(BinaryIO, file)


class _Growing(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._unsynced = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Writes all of `data`; returns its bytes. Raises OSError."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), WRITE_BYTES):
            self._write(view[begin : begin + WRITE_BYTES])
        return len(view)

    def _write(self, part: memoryview) -> None:
        while len(part):
            written = self._file.write(part) or 0
            part, self._unsynced = part[written:], self._unsynced + written
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._unsynced = 0
        progress.report()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def check_writable(path: Path) -> None:
    """Raises OSError unless a file can be written at `path`, to be called before the work that makes its content. Its
    folder is made."""
    temporary = _beside(path)
    try:
        temporary.touch()
    except OSError as error:
        error.filename = str(path)
        raise
    temporary.unlink()


def _beside(path: Path) -> Path:
    """A temporary name in the folder of `path`, which is made. Raises OSError, also when `path` is itself a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` by `text` in UTF-8, atomically; bytes of file names that are none become escapes."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Replaces the file at `path` by `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
            progress.report()
    return digest.hexdigest()
