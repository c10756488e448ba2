"""The files below a folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ggcn import files
from ggcn.shards.entry import Entry, size_and_stamp


def list_folder(location: str) -> Iterator[Entry]:
    """The files below a folder, those behind symbolic links once. Raises OSError."""
    seen: set[tuple[int, int]] = set()
    list(_unseen_folders(location, ["."], seen))
    for root, folders, names in os.walk(location, followlinks=True, onerror=_raise):
        folders[:] = _unseen_folders(root, folders, seen)
        for name in names:
            path = os.path.join(root, name)
            size, stamp = size_and_stamp(path)
            inside = Path(path).relative_to(location).as_posix()
            yield Entry(inside, inside, size, stamp=stamp)


def _raise(error: OSError) -> None:
    raise error


def _unseen_folders(root: str, names: Iterable[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    for name in sorted(names):
        status = os.stat(os.path.join(root, name))
        if (status.st_dev, status.st_ino) not in seen:  # symbolic links can form a cycle
            seen.add((status.st_dev, status.st_ino))
            yield name


def read_file(location: str, entry: Entry) -> bytes:
    """The bytes of a file. Raises OSError, also for what is no regular file."""
    return files.read_bytes(Path(location, entry.path))
