"""All pictures of a folder of shards, in one tensor and in the manifest's order."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ggcn import image_grid, progress
from ggcn.config.data import DataConfig
from ggcn.data import shard_index
from ggcn.data.decoding import ImageDecoder, image_decoder
from ggcn.data.manifest import Manifest
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.data.shard_reader import ShardReader
from ggcn.distributed.lanes import bits
from ggcn.errors import UserError

LEAST = 12
"""pictures below which no figure here means anything"""


KEPT = 2**28
"""bytes of pixels that stay in memory; what is larger is read from the shards whenever it is looked at"""
PART = 2**25
"""bytes of pixels that are read at once"""


class Pixels(Protocol):
    """uint8 pictures [n, c, h, w]: a tensor, or what gives them from their shards a few at a time."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def split(self, size: int) -> Iterable[Any]:
        """Pixels of up to `size` pictures each, in their order."""
        ...

    def __getitem__(self, rows: Any) -> Any:
        """The pictures of these rows (a slice or a list), a tensor."""
        ...


def at_once(pixels: Pixels) -> int:
    """How many pictures have PART bytes."""
    return max(PART // math.prod(pixels.shape[1:]), 1)


@dataclass(frozen=True)
class Source:
    """The samples `chosen` of one set of shards, all of which decode, as pixels that are read when they are needed."""

    folder: str
    data: Manifest
    form: ImageDecoder
    chosen: Sequence[int]
    size: int
    config: DataConfig

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of a tensor."""
        return len(self.chosen), self.data.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.chosen)

    def split(self, size: int) -> "Iterator[Source | Tensor]":
        """The pictures `size` at a time: tensors, or such sources again where that would be too many at once."""
        if size <= at_once(self):
            yield from self.tensors(size)
            return
        for first in range(0, len(self), size):
            yield replace(self, chosen=self.chosen[first : first + size])

    def tensors(self, size: int) -> Iterator[Tensor]:
        """The pictures that decode, `size` at a time, in one pass over the shards."""
        decoded = (pixels for _, pixels in self.decoded())
        while part := list(islice(decoded, size)):
            yield torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, rows: slice | Sequence[int]) -> Tensor:
        chosen = self.chosen[rows] if isinstance(rows, slice) else [self.chosen[row] for row in rows]
        parts = list(replace(self, chosen=chosen).tensors(max(len(chosen), 1)))
        return parts[0] if parts else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def decoded(self) -> Iterator[tuple[int, np.ndarray]]:
        """The samples that decode, with their pixels [size, size, c]."""
        index = ShardIndex([ShardFolder(self.folder, self.data)], self.config)
        ids = np.asarray(self.chosen, dtype=np.int64)
        shards = np.searchsorted(index.first, ids, side="right") - 1
        places = zip(*(column.tolist() for column in index.byte_ranges(ids, shards)), strict=True)
        with contextlib.closing(ShardReader(self.config)) as reader:
            for number, shard, (offset, size) in zip(self.chosen, shards.tolist(), places, strict=True):
                data = reader.read(index.remote(shard), offset, size)
                progress.report()
                out = np.empty((self.size, self.size, self.data.channels), np.uint8)
                try:
                    self.form.decode(data, bits("evaluation", number), out)
                except Exception:  # decoders meet damage with whatever it makes them stumble over
                    continue
                yield number, out


@dataclass(frozen=True)
class Images:
    """Pictures of one set, as the model sees them."""

    pixels: Pixels
    """uint8 [n, 3, size, size]"""
    hash: str
    """the manifest's"""
    key: str
    """names these pixels among all sets, sizes, crops and limits"""
    folder: str
    undecodable: int = 0
    """pictures of the set that are left out since they cannot be decoded"""
    available: int = 0
    """pictures that the set has"""

    def __len__(self) -> int:
        return len(self.pixels)


def read(folder: str | Path, size: int, most: int, crop: int = 0, config: DataConfig | None = None) -> Images:
    """The pictures of a set of shards (path or URL) at `size` pixels a side, at most `most` of them, evenly spaced.

    `crop`: side in stored pixels of the square that a picture shows, as data.crop, always the same one; 0: whole.
    `config`: how shards are fetched and kept. More than KEPT bytes of pixels do not stay in memory.
    Raises UserError when there are no shards, they cannot be brought to `size`, or too few decode.
    """
    source = _source(folder, size, most, crop, config or DataConfig())
    wanted, data = source.shape, source.data
    kept = np.empty((wanted[0], size, size, wanted[1]), np.uint8) if math.prod(wanted) <= KEPT else None
    good: list[int] = []
    for number, pixels in source.decoded():
        if kept is not None:
            kept[len(good)] = pixels
        good.append(number)
    _check(source, len(good))
    found: Pixels = replace(source, chosen=good)
    if kept is not None:
        found = torch.from_numpy(kept[: len(good)]).permute(0, 3, 1, 2).contiguous()
    key = f"{data.hash[:32]}-{size}px-crop{crop}-{len(source)}of{data.samples}"
    return Images(found, data.hash, key, source.folder, len(source) - len(good), data.samples)


def batches(
    folder: str | Path, size: int, most: int, crop: int = 0, config: DataConfig | None = None
) -> Iterator[Tensor]:
    """The pictures that `read` gives, read once and a few at a time, uint8 [n, c, size, size]. Raises as `read`."""
    source, count = _source(folder, size, most, crop, config or DataConfig()), 0
    for part in source.tensors(at_once(source)):
        count += len(part)
        yield part
    _check(source, count)


def _source(folder: str | Path, size: int, most: int, crop: int, config: DataConfig) -> Source:
    folder = str(folder)
    config.refuse_pipe(folder)
    found = shard_index.load_manifest(folder, config)
    count = min(found.samples, most)
    chosen = [number * found.samples // count for number in range(count)]
    return Source(folder, found, image_decoder(folder, found, size, crop), chosen, size, config)


def _check(source: Source, good: int) -> None:
    if good < LEAST:
        raise UserError(
            f"{source.folder} has {good} pictures to evaluate with; {LEAST} are the least, more are better"
        )


def to_bytes(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] as the uint8 [n, 3, h, w] of a picture file."""
    return torch.from_numpy(image_grid.to_bytes(images)).permute(0, 3, 1, 2).contiguous()


def to_floats(pixels: Tensor) -> Tensor:
    """uint8 pixels in [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def enlarged(pixels: Tensor, size: int) -> Tensor:
    """uint8 pictures [n, c, h, h], blown up to `size` pixels a side."""
    if pixels.shape[-1] == size:
        return pixels
    large = torch.nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear")
    return large.round().to(torch.uint8)


def gaussian(pixels: Pixels, components: int, count: int, seed: int) -> Tensor:
    """`count` pictures of a Gaussian with the mean and the `components` main directions of pixels [n, 3, h, w].

    uint8 [count, 3, h, w]; of more than WIDE pixels a side, at WIDE and to be blown up. It knows nothing of a picture
    but how pixels vary together: a model of some thousand numbers that any network ought to beat.
    """
    few = _few(pixels)
    shape, few = few.shape[1:], few.flatten(1).float()
    components = min(components, len(few) - 1, few.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits("pca gaussian", seed))
        mean = few.mean(0)
        _, spread, axes = torch.svd_lowrank(few - mean, min(components + 30, *few.shape), niter=4)
        scores = torch.randn(count, components) * spread[:components] / math.sqrt(len(few) - 1)
    drawn = mean + scores @ axes[:, :components].T
    return drawn.clamp(0, 255).round().to(torch.uint8).view(count, *shape)


def _few(pixels: Pixels) -> Tensor:
    """Evenly spaced pictures, at most FIT and NUMBERS numbers of them, averaged to WIDE pixels a side at most."""
    side = next(
        pixels.shape[2] // n
        for n in range(1, pixels.shape[2] + 1)
        if pixels.shape[2] % n == 0 and pixels.shape[2] // n <= WIDE
    )
    most = min(FIT, max(NUMBERS // (pixels.shape[1] * side**2), 1))
    every = math.ceil(len(pixels) / most)
    if side == pixels.shape[2]:
        return pixels[::every]
    rows = list(range(0, len(pixels), every))
    parts = [pixels[rows[first : first + 16]].float() for first in range(0, len(rows), 16)]
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(part, side) for part in parts])


FIT, NUMBERS = 10_000, 10_000 * 3 * 64**2
"""pictures, and numbers in all, that are enough to fit the Gaussian to, and fit in memory"""
ALL = 64
"""pixels a side up to which neither bound below changes which pictures it is fitted to"""
WIDE = 128
"""pixels a side that the main directions of pictures need at most"""
