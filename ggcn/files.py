"""Atomic writes, and reads that never block."""

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
"""bytes of a large file between two fsyncs, so that no single one takes long"""
WRITE_BYTES = 16 << 20
"""bytes of a large file between two progress reports"""


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError, also for a pipe, a socket or a device, from which a read might
    never return."""
    if kind := type_of(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
    return open(path, "rb", opener=_open_nonblocking)  # in case a pipe replaces the file meanwhile


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8; invalid bytes become question marks. Raises OSError as `open_regular`
    does."""
    return read_bytes(path).decode(errors="replace")


def type_of(mode: int) -> str:
    """The type of a file by its mode from os.stat, such as "a named pipe"; empty for a regular file."""
    types = {
        stat.S_ISREG: "",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in types.items() if test(mode)), "a device")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, sync_folder: bool = True, sync_file: bool = True) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on success it atomically replaces `path`, on error it is removed.

    Without `sync_folder` the folder's entry is not flushed to the disk, and a power cut may undo the replacement;
    without `sync_file` it may leave a damaged file, which its reader must recognize.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if sync_file:
            sync(temporary)
        os.replace(temporary, path)
        if sync_folder:
            sync(path.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == os.fspath(temporary):
            error.filename = str(path)  # the path that the caller named
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def streaming_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file for a large value: it reports progress while it is written, and is flushed to the disk as it
    grows."""
    with _StreamingFile(path) as file:
        yield cast(BinaryIO, file)


class _StreamingFile(io.RawIOBase):
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

    def _write(self, block: memoryview) -> None:
        while len(block):
            written = self._file.write(block) or 0
            block, self._unsynced = block[written:], self._unsynced + written
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._unsynced = 0
        progress.report()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def check_writable(path: Path) -> None:
    """Raises OSError unless a file can be written at `path`; call it before computing the content. Creates the
    folder."""
    temporary = _temporary(path)
    try:
        temporary.touch()
    except OSError as error:
        error.filename = str(path)
        raise
    temporary.unlink()


def _temporary(path: Path) -> Path:
    """A temporary path in the folder of `path`, which is created. Raises OSError, also when `path` is a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` by `text` in UTF-8, atomically; what cannot be encoded becomes escapes."""
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
