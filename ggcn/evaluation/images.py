"""All pictures of a folder of shards, in one tensor and in the manifest's order."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ggcn import pictures, progress
from ggcn.data import fetch
from ggcn.data.config import DataConfig
from ggcn.data.stream import Folder, Index
from ggcn.data.view import View, view
from ggcn.errors import UserError
from ggcn.lanes import bits

LEAST = 12
"""pictures below which no figure here means anything"""


@dataclass(frozen=True)
class Images:
    """Pictures of one set, as the model sees them."""

    pixels: Tensor
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
    `config`: how shards are fetched and kept.
    Raises UserError when there are no shards, they cannot be brought to `size`, or too few decode.
    """
    folder = str(folder)
    config = config or DataConfig()
    config.refuse_pipe(folder)
    found = fetch.load_manifest(folder, config)
    form = view(folder, found, size, crop)
    index = Index([Folder(folder, found)], config)
    chosen = [
        number * found.samples // min(found.samples, most) for number in range(min(found.samples, most))
    ]
    with contextlib.closing(fetch.Reader(config)) as reader:
        good = _decoded(reader, index, form, chosen, (size, size, found.channels))
    if len(good) < LEAST:
        raise UserError(
            f"{folder} has {len(good)} pictures to evaluate with; {LEAST} are the least, more are better"
        )
    key = f"{found.hash[:32]}-{size}px-crop{crop}-{len(chosen)}of{found.samples}"
    pixels = torch.from_numpy(good).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, found.hash, key, folder, len(chosen) - len(good), found.samples)


def _decoded(
    reader: fetch.Reader, index: Index, form: View, chosen: Sequence[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Those of the samples `chosen` that decode, uint8 [n, *shape]."""
    out = np.empty((len(chosen), *shape), np.uint8)
    ids, row = np.asarray(chosen), 0
    shards = np.searchsorted(index.first, ids, side="right") - 1
    places = zip(*(column.tolist() for column in index.places(ids, shards)), strict=True)
    for number, shard, (offset, size) in zip(chosen, shards.tolist(), places, strict=True):
        data = reader.read(index.remote(shard), offset, size)
        progress.report()
        try:
            form.decode(data, bits("evaluation", number), out[row])
            row += 1
        except Exception:  # decoders meet damage with whatever it makes them stumble over
            continue
    return out[:row]


def to_bytes(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] as the uint8 [n, 3, h, w] of a picture file."""
    return torch.from_numpy(pictures.to_bytes(images)).permute(0, 3, 1, 2).contiguous()


def to_floats(pixels: Tensor) -> Tensor:
    """uint8 pixels in [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def gaussian(pixels: Tensor, components: int, count: int, seed: int) -> Tensor:
    """`count` pictures of a Gaussian with the mean and the `components` main directions of pixels [n, 3, h, w].

    uint8 [count, 3, h, w]. It knows nothing of a picture but how pixels vary together: a model of some
    thousand numbers that any network ought to beat.
    """
    few = pixels[:: math.ceil(len(pixels) / FIT)].flatten(1).float()
    components = min(components, len(few) - 1, few.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits("pca gaussian", seed))
        mean = few.mean(0)
        _, spread, axes = torch.svd_lowrank(few - mean, min(components + 30, *few.shape), niter=4)
        scores = torch.randn(count, components) * spread[:components] / math.sqrt(len(few) - 1)
    drawn = mean + scores @ axes[:, :components].T
    return drawn.clamp(0, 255).round().to(torch.uint8).view(count, *pixels.shape[1:])


FIT = 10_000
"""pictures that are enough to fit the Gaussian to, and fit in memory"""
