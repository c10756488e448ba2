"""One image of a source."""

import os
import time
from dataclasses import dataclass
from typing import Any

Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file next to an image that says something about it, such as its caption."""

    key: str
    """what it is, by the ending of its name: txt, json, cls or caption"""
    path: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source."""

    name: str
    """path relative to the source's root, with forward slashes, in Unicode's composed form (NFC)"""
    path: str
    """where it is stored: the file's path below the root, its name in the archive, its key or its URL"""
    bytes: int
    """size of the file; -1 if it is unknown"""
    offset: int = -1
    """in a tar or batch: where the file begins; in a table: its row"""
    pieces: tuple[tuple[int, int], ...] = ()
    """of a sparse file in a tar: where each run of stored bytes belongs, and its length"""
    stamp: Stamp = ()
    """changes whenever the file (or its archive) is written, see `stamp_of`; () if that is not certain"""
    kind: str = "file"
    """what holds it: file, demo, zip, tar, table, lmdb, cifar or urls"""
    container: str = ""
    """path below the root of the archive that holds it; empty if the source itself is that archive"""
    group: str = ""
    """images of one group are read one after another, since none can be read alone; empty if this one can"""
    split: str = ""
    """train, validation or test, where the source declares it"""
    side_files: tuple[SideFile, ...] = ()
    annotation: dict[str, Any] | None = None
    """labels and the like that are known without reading the image"""


def stamp_of(status: os.stat_result) -> Stamp:
    """Values of which at least one changes with the file: inode, size, and the times of its content and of its status.

    The last one is set by the kernel, and no tool can reset it. A file written in the last two seconds, the coarsest
    resolution of a file system, gets (): another change within the same tick would not show.
    """
    settled = time.time_ns() - status.st_ctime_ns > 2_000_000_000
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if settled else ()


def size_and_stamp(path: str) -> tuple[int, Stamp]:
    """Size and stamp of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed here, rejected when it is read
        return -1, ()
    return status.st_size, stamp_of(status)


def joined(stamps: list[Stamp]) -> Stamp:
    """The stamp of several files together; () if one of them has none."""
    return tuple(value for stamp in stamps for value in stamp) if all(stamps) else ()
