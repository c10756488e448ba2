"""`index.bin`: where each sample lies, an array that all processes of a node map into memory."""

import hashlib
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ggcn import files
from ggcn.data.manifest import REBUILD, IndexFile, Manifest, Shards
from ggcn.errors import UserError

INDEX = "index.bin"
BYTE_RANGE = np.dtype([("offset", "<u8"), ("size", "<u4")])
"""one entry of the index: where an image's bytes begin in its tar, and how many there are"""
BLOCK = 512
"""bytes of a tar's header; an image is padded to a multiple of it"""


def byte_ranges(offsets: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The index entries of one shard, BYTE_RANGE [samples]. Raises ValueError for numbers that do not fit."""
    if len(offsets) != len(sizes):
        raise ValueError("it does not have one offset and one size for each sample")
    try:
        offset, size = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)
    except OverflowError:
        raise ValueError("an offset or a size is out of range") from None
    if not ((offset >= 0).all() and (size > 0).all() and (size < 1 << 32).all()):
        raise ValueError("a size is out of range")
    ranges = np.empty(len(offset), BYTE_RANGE)
    ranges["offset"], ranges["size"] = offset, size
    return ranges


def write_index(folder: Path, ranges: Iterable[np.ndarray]) -> IndexFile:
    """Writes `folder/index.bin` atomically from arrays of BYTE_RANGE; returns its name, size and sha256."""
    digest, size = hashlib.sha256(), 0
    with files.atomic_write(folder / INDEX) as temporary, temporary.open("wb") as file:
        for part in ranges:
            data = np.ascontiguousarray(part, BYTE_RANGE).tobytes()
            digest.update(data)
            size += file.write(data)
    return IndexFile(INDEX, size, digest.hexdigest())


def byte_range_problem(shards: Shards, ranges: np.ndarray) -> str:
    """What is wrong with the index entries of shards; empty if the images lie one after another in their tars.

    `ranges`: BYTE_RANGE [samples of the shards].
    """
    first = np.concatenate([[0], np.cumsum(shards.samples)])[:-1]
    bytes_ = np.repeat(shards.bytes, shards.samples)
    offset, size = ranges["offset"].astype(np.int64), ranges["size"].astype(np.int64)
    end = offset + size
    lowest = np.concatenate([[0], end[:-1]]) + BLOCK
    lowest[first] = BLOCK
    wrong = (offset < lowest) | (size == 0) | (offset > bytes_) | (end > bytes_)
    if not wrong.any():
        return ""
    sample = int(wrong.argmax())
    shard = int(np.searchsorted(first, sample, side="right")) - 1
    return f"sample {sample - int(first[shard])} cannot lie where it says in shard {shards[shard].name}"


def map_index(file: int, samples: int, name: str) -> np.ndarray:
    """The index in an open file, mapped into memory read-only: BYTE_RANGE [samples].

    Raises UserError, naming the file `name`, when it has another size.
    """
    size = os.fstat(file).st_size
    if size != samples * BYTE_RANGE.itemsize:
        raise UserError(
            f"{name} has {size} bytes, not {samples * BYTE_RANGE.itemsize}; restore it or {REBUILD}"
        )
    memory = mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    return np.frombuffer(memory, BYTE_RANGE)


def open_index(manifest: Manifest) -> np.ndarray:
    """Where each sample of a local data set lies, BYTE_RANGE [samples].

    Raises UserError when the file is missing or has another size.
    """
    if manifest.index is None:
        assert manifest.ranges is not None
        return manifest.ranges
    path = manifest.folder / manifest.index.name
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it or {REBUILD}") from None
    try:
        return map_index(file, manifest.samples, str(path))
    finally:
        os.close(file)
