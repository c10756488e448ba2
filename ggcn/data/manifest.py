"""The manifest of a folder of shards: it is the data set.

`OUT/manifest.json` is written last by tools/make_shards.py and says all that training needs to know before
it opens a shard: how many samples, and what the bytes must hash to. Where each sample lies is in
`OUT/index.bin`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ggcn import files
from ggcn.errors import UserError

NAME = "manifest.json"
VERSION = 2
REBUILD = "build the shards again"


@dataclass(frozen=True)
class Shard:
    """One tar of images."""

    name: str
    """file name inside the folder of the manifest"""
    samples: int
    bytes: int
    """size of the tar"""
    sha256: str


class Shards(Sequence[Shard]):
    """The shards of a data set, kept as columns: 100,000 of them take 6 MB instead of 40."""

    def __init__(
        self, names: np.ndarray, samples: np.ndarray, sizes: np.ndarray, digests: np.ndarray
    ) -> None:
        """`names`: bytes. `samples`, `sizes` (of the tars): int64. `digests`: uint8 [shards, 32]."""
        self.names, self.samples, self.bytes, self.digests = names, samples, sizes, digests

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "Shards":
        """The columns of shards."""
        rows = [(s.name, s.samples, s.bytes, s.sha256) for s in shards]
        return cls.from_columns(*zip(*rows, strict=True))

    @classmethod
    def from_columns(
        cls, names: Sequence[str], samples: Sequence[int], sizes: Sequence[int], digests: Sequence[str]
    ) -> "Shards":
        """The columns from Python's values."""
        return cls(
            np.array([name.encode() for name in names], dtype=np.bytes_),
            np.array(samples, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32),
        )

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    def __getitem__(self, index: int | slice) -> "Shard | Shards":
        if isinstance(index, slice):
            return Shards(self.names[index], self.samples[index], self.bytes[index], self.digests[index])
        digest = self.digests[index].tobytes().hex()
        return Shard(self.names[index].decode(), int(self.samples[index]), int(self.bytes[index]), digest)

    def __iter__(self) -> Iterator[Shard]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class IndexFile:
    """The file that says where every sample lies: an array of BYTE_RANGE, shard after shard."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data set of square images in shards."""

    size: int
    """pixels along a side"""
    channels: int
    extension: str
    """the images' encoding and their name's ending in the tar: png, jpg or webp"""
    samples: int
    bytes: int
    options: dict[str, Any]
    """how the shards were built; another set of options is another data set"""
    rejected: int
    """images of the source that could not be read; rejected.jsonl lists them"""
    shards: Shards
    index: IndexFile | None
    """None in a manifest of version 1, which holds the byte ranges itself"""
    folder: Path = field(default=Path(), compare=False)
    ranges: np.ndarray | None = field(default=None, compare=False, repr=False)
    """BYTE_RANGE [samples] of a manifest of version 1"""

    @cached_property
    def hash(self) -> str:
        """Identity of the content: depends on the shards' bytes, not on their folder."""
        # json.dumps of [size, channels, [[samples, sha256], ...]], without a list of all shards
        digest, separator = hashlib.sha256(f"[{self.size}, {self.channels}, [".encode()), ""
        for samples, row in zip(self.counts.tolist(), self.shards.digests, strict=True):
            digest.update(f'{separator}[{samples}, "{row.tobytes().hex()}"]'.encode())
            separator = ", "
        digest.update(b"]]")
        return digest.hexdigest()

    @property
    def counts(self) -> np.ndarray:
        """Samples per shard, int64."""
        return self.shards.samples

    @cached_property
    def first(self) -> np.ndarray:
        """Per shard the number of its first sample, and at the end the number of all samples; int64."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json` atomically; the index must be there already."""
        fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "index")
        value = {name: getattr(self, name) for name in fields}
        value["index"] = self.index and asdict(self.index)
        shards = [asdict(shard) for shard in self.shards]
        files.write_json(folder / NAME, {"version": VERSION, **value, "shards": shards}, indent=None)


def channels(manifests: Sequence[Manifest]) -> int:
    """Channels of the images. Raises UserError when folders of a mixture differ in that."""
    channels = {manifest.channels for manifest in manifests}
    if len(channels) > 1:
        raise UserError("data.mixture has grey and colour shards; build them all with the same channels")
    return channels.pop()
