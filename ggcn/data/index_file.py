"""`index.bin`: where every sample lies, an array that all processes of a node map into memory."""

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
PLACE = np.dtype([("offset", "<u8"), ("size", "<u4")])
"""one entry of the index: where an image's bytes begin in its tar, and how many there are"""
BLOCK = 512
"""bytes of a tar's header; an image's bytes are filled up to a multiple of it"""


def places_of(offsets: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The index entries of one shard, PLACE [samples]. Raises ValueError for numbers that do not fit."""
    if len(offsets) != len(sizes):
        raise ValueError("it has not one offset and one size for each sample")
    try:
        offset, size = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)
    except OverflowError:
        raise ValueError("an offset or a size is out of range") from None
    if not ((offset >= 0).all() and (size > 0).all() and (size < 1 << 32).all()):
        raise ValueError("a size is out of range")
    places = np.empty(len(offset), PLACE)
    places["offset"], places["size"] = offset, size
    return places


def write_index(folder: Path, places: Iterable[np.ndarray]) -> IndexFile:
    """Writes `folder/index.bin`, whole or not at all, from arrays of PLACE, and returns what it is."""
    digest, size = hashlib.sha256(), 0
    with files.atomic_write(folder / INDEX) as temporary, temporary.open("wb") as file:
        for some in places:
            data = np.ascontiguousarray(some, PLACE).tobytes()
            digest.update(data)
            size += file.write(data)
    return IndexFile(INDEX, size, digest.hexdigest())


def places_problem(shards: Shards, places: np.ndarray) -> str:
    """What is wrong with the index entries of some shards; empty if each image lies in its tar, one after another.

    `places`: PLACE [samples of the shards].
    """
    first = np.concatenate([[0], np.cumsum(shards.samples)])[:-1]
    bytes_ = np.repeat(shards.bytes, shards.samples)
    offset, size = places["offset"].astype(np.int64), places["size"].astype(np.int64)
    end = offset + size
    least = np.concatenate([[0], end[:-1]]) + BLOCK
    least[first] = BLOCK
    wrong = (offset < least) | (size == 0) | (offset > bytes_) | (end > bytes_)
    if not wrong.any():
        return ""
    sample = int(wrong.argmax())
    shard = int(np.searchsorted(first, sample, side="right")) - 1
    return f"sample {sample - int(first[shard])} cannot lie where it says in shard {shards[shard].name}"


def map_index(file: int, samples: int, name: str) -> np.ndarray:
    """The index in an open file, mapped into memory read-only: PLACE [samples].

    Raises UserError, which calls the file `name`, when it has not the size for that.
    """
    size = os.fstat(file).st_size
    if size != samples * PLACE.itemsize:
        raise UserError(f"{name} has {size} bytes, not {samples * PLACE.itemsize}; restore it or {REBUILD}")
    memory = mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    return np.frombuffer(memory, PLACE)


def open_index(manifest: Manifest) -> np.ndarray:
    """Where every sample of a local data set lies, PLACE [samples]. Raises UserError when it does not fit."""
    if manifest.index is None:
        assert manifest.places is not None
        return manifest.places
    path = manifest.folder / manifest.index.name
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hang it
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it or {REBUILD}") from None
    try:
        return map_index(file, manifest.samples, str(path))
    finally:
        os.close(file)
