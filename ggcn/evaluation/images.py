"""Image sets to evaluate with: the images of a folder of shards, in the manifest's order."""

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

MIN_IMAGES = 12
"""least number of images with which any number here is meaningful"""


MAX_BYTES_IN_MEMORY = 2**28
"""bytes of pixels that stay in memory; larger sets are read from their shards whenever they are used"""
CHUNK_BYTES = 2**25
"""bytes of pixels in memory at once where a set is read from its shards"""


class ImageArray(Protocol):
    """uint8 images [n, c, h, w]: a tensor, or LazyImages, which reads them from their shards."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def split(self, size: int) -> Iterable[Any]:
        """Parts of at most `size` images each, in order."""
        ...

    def __getitem__(self, indices: Any) -> Any:
        """The images at these indices (a slice or a list), as a tensor."""
        ...


def chunk_size(pixels: ImageArray) -> int:
    """The number of images that CHUNK_BYTES hold."""
    return max(CHUNK_BYTES // math.prod(pixels.shape[1:]), 1)


@dataclass(frozen=True)
class LazyImages:
    """The samples `chosen` of a folder of shards, decoded whenever they are used. All must decode, except for
    `decoded` and `tensors`, which leave out those that do not."""

    folder: str
    data: Manifest
    decoder: ImageDecoder
    chosen: Sequence[int]
    size: int
    config: DataConfig

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of a tensor."""
        return len(self.chosen), self.data.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.chosen)

    def split(self, size: int) -> "Iterator[LazyImages | Tensor]":
        """The images `size` at a time: tensors, or LazyImages where those would exceed CHUNK_BYTES."""
        if size <= chunk_size(self):
            yield from self.tensors(size)
            return
        for first in range(0, len(self), size):
            yield replace(self, chosen=self.chosen[first : first + size])

    def tensors(self, size: int) -> Iterator[Tensor]:
        """The images that decode, `size` at a time, in one pass over the shards."""
        decoded = (pixels for _, pixels in self.decoded())
        while part := list(islice(decoded, size)):
            yield torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, indices: slice | Sequence[int]) -> Tensor:
        chosen = (
            self.chosen[indices] if isinstance(indices, slice) else [self.chosen[index] for index in indices]
        )
        parts = list(replace(self, chosen=chosen).tensors(max(len(chosen), 1)))
        return parts[0] if parts else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def decoded(self) -> Iterator[tuple[int, np.ndarray]]:
        """The samples that decode, with their pixels [size, size, c]."""
        index = ShardIndex([ShardFolder(self.folder, self.data)], self.config)
        ids = np.asarray(self.chosen, dtype=np.int64)
        shards = np.searchsorted(index.first, ids, side="right") - 1
        ranges = zip(*(column.tolist() for column in index.byte_ranges(ids, shards)), strict=True)
        with contextlib.closing(ShardReader(self.config)) as reader:
            for number, shard, (offset, size) in zip(self.chosen, shards.tolist(), ranges, strict=True):
                data = reader.read(index.remote(shard), offset, size)
                progress.report()
                out = np.empty((self.size, self.size, self.data.channels), np.uint8)
                try:
                    self.decoder.decode(data, bits("evaluation", number), out)
                except Exception:  # noqa: S112 (decoders raise all kinds for damaged images, which are counted)
                    continue
                yield number, out


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder of shards, at the model's size and crop."""

    pixels: ImageArray
    """uint8 [n, 3, size, size]"""
    hash: str
    """the manifest's"""
    key: str
    """identifies these pixels: by data set, size, crop and limit"""
    folder: str
    undecodable: int = 0
    """images left out because they cannot be decoded"""
    available: int = 0
    """images in the shards"""

    def __len__(self) -> int:
        return len(self.pixels)


def read(
    folder: str | Path, size: int, limit: int, crop: int = 0, config: DataConfig | None = None
) -> ImageSet:
    """The images of a folder of shards (path or URL) at `size` pixels a side, at most `limit` of them, evenly spaced.

    `crop`: side in stored pixels of the square that is cut out of an image, as data.crop; 0: no crop.
    `config`: how shards are fetched and cached. Sets of more than MAX_BYTES_IN_MEMORY are not kept in memory.
    Raises UserError when there are no shards, they cannot be brought to `size`, or too few decode.
    """
    lazy = _lazy_images(folder, size, limit, crop, config or DataConfig())
    shape, data = lazy.shape, lazy.data
    array = (
        np.empty((shape[0], size, size, shape[1]), np.uint8)
        if math.prod(shape) <= MAX_BYTES_IN_MEMORY
        else None
    )
    good: list[int] = []
    for number, decoded in lazy.decoded():
        if array is not None:
            array[len(good)] = decoded
        good.append(number)
    _check(lazy, len(good))
    pixels: ImageArray = replace(lazy, chosen=good)
    if array is not None:
        pixels = torch.from_numpy(array[: len(good)]).permute(0, 3, 1, 2).contiguous()
    key = f"{data.hash[:32]}-{size}px-crop{crop}-{len(lazy)}of{data.samples}"
    return ImageSet(pixels, data.hash, key, lazy.folder, len(lazy) - len(good), data.samples)


def batches(
    folder: str | Path, size: int, limit: int, crop: int = 0, config: DataConfig | None = None
) -> Iterator[Tensor]:
    """The images that `read` returns, read once and a few at a time, uint8 [n, c, size, size]. Raises as `read`."""
    lazy, count = _lazy_images(folder, size, limit, crop, config or DataConfig()), 0
    for part in lazy.tensors(chunk_size(lazy)):
        count += len(part)
        yield part
    _check(lazy, count)


def _lazy_images(folder: str | Path, size: int, limit: int, crop: int, config: DataConfig) -> LazyImages:
    folder = str(folder)
    config.refuse_pipe(folder)
    manifest = shard_index.load_manifest(folder, config)
    count = min(manifest.samples, limit)
    chosen = [number * manifest.samples // count for number in range(count)]
    return LazyImages(folder, manifest, image_decoder(folder, manifest, size, crop), chosen, size, config)


def _check(images: LazyImages, count: int) -> None:
    if count < MIN_IMAGES:
        raise UserError(
            f"{images.folder} has {count} images to evaluate with; give at least {MIN_IMAGES}, better more"
        )


def to_bytes(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] as uint8 [n, 3, h, w], as image files hold them."""
    return torch.from_numpy(image_grid.to_bytes(images)).permute(0, 3, 1, 2).contiguous()


def to_floats(pixels: Tensor) -> Tensor:
    """uint8 pixels in [-1, 1], float32."""
    return pixels.float() / 127.5 - 1
