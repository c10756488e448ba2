"""One image file of a source."""

import os
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file of a source."""

    name: str
    """path relative to the source's root, with forward slashes, in Unicode's composed form (NFC)"""
    path: str
    """where it is stored: the file's path below the root, or its name in the archive"""
    bytes: int
    """size of the file; -1 if it is unknown"""
    offset: int = -1
    """in a tar: where the file begins"""
    pieces: tuple[tuple[int, int], ...] = ()
    """of a sparse file in a tar: where each run of stored bytes belongs, and its length"""
    stamp: tuple[int, ...] = ()
    """changes whenever the file (or its archive) is written, see `stamp_of`; () if that is not certain"""


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Values of which at least one changes with the file: inode, size, and the times of its content and of its status.

    The last one is set by the kernel, and no tool can reset it. A file written in the last two seconds, the coarsest
    resolution of a file system, gets (): another change within the same tick would not show.
    """
    settled = time.time_ns() - status.st_ctime_ns > 2_000_000_000
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if settled else ()


def size_and_stamp(path: str) -> tuple[int, tuple[int, ...]]:
    """Size and stamp of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed here, rejected when it is read
        return -1, ()
    return status.st_size, stamp_of(status)
