"""Compares the files of a folder of shards with its manifest."""

import os
import stat
from pathlib import Path

from ggcn import files
from ggcn.data import remote
from ggcn.data.index_file import byte_range_problem, open_index
from ggcn.data.manifest import REBUILD, IndexFile, Manifest, Shard, Shards
from ggcn.data.shard_index import ShardFolder
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


def verify(folder: ShardFolder, lanes: Lanes, full: bool) -> None:
    """Checks a local folder's shards against the manifest; ranks share the reading that `full` takes.

    Raises UserError naming a shard that is missing or differs. Remote shards are checked as they arrive.
    """
    if remote.local_path(folder.url) is not None:
        check_files(folder.manifest)
        if full:
            share = folder.manifest.shards[lanes.rank :: lanes.world]
            check_shards(folder.manifest.folder, share, full=True)
        if full and lanes.rank == 0:
            check_index(folder.manifest, full=True)


def check_files(manifest: Manifest, full: bool = False) -> None:
    """Compares the index's and every shard's size, and its sha256 if `full`, with the manifest.

    Raises UserError naming the first file that is missing or differs.
    """
    check_index(manifest, full)
    check_shards(manifest.folder, manifest.shards, full)


def check_index(manifest: Manifest, full: bool = False) -> None:
    """Compares the index's size with the manifest, and if `full` its sha256 and every entry with the shards.

    Raises UserError when it is missing or differs.
    """
    ranges = open_index(manifest)
    if full and manifest.index is not None:
        check_file(manifest.folder / manifest.index.name, manifest.index, True, "index")
    for start in range(0, len(manifest.shards) if full else 0, 1024):  # a few MB at a time
        shards = manifest.shards[start : start + 1024]
        part = ranges[manifest.first[start] : manifest.first[start + len(shards)]]
        if problem := byte_range_problem(shards, part):
            raise UserError(f"the index of {manifest.folder} is damaged ({problem}); {REBUILD}")


def check_shards(folder: Path, shards: Shards, full: bool = False) -> None:
    """Compares the sizes of shards of a folder, and their sha256 if `full`, with the manifest.

    Raises UserError naming the first that is missing or differs.
    """
    names, sizes = shards.names.tolist(), shards.bytes.tolist()
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        path = os.path.join(folder, name.decode())
        if full or not _has_size(path, size):
            check_file(path, shards[number], full, "shard")


def _has_size(path: str, size: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == size and stat.S_ISREG(status.st_mode)


def check_file(path: Path | str, expected: Shard | IndexFile, full: bool, kind: str) -> None:
    """Compares a file's size, and its sha256 if `full`, with the manifest. Raises UserError naming it and its kind."""
    fix = f"restore it or {REBUILD}"
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{kind} {path} is missing; {fix}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{kind} {path} is no regular file; {fix}")
    if status.st_size != expected.bytes:
        raise UserError(f"{kind} {path} has {status.st_size} bytes, not {expected.bytes}; {fix}")
    if full and files.sha256(Path(path)) != expected.sha256:
        raise UserError(f"{kind} {path} was altered (sha256 differs); {fix}")
