"""Shards to measure on, built from photographs or random images."""

import contextlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ggcn.data import index_file
from ggcn.data.manifest import Manifest
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.shards import build, crop, shard_spec, sources
from ggcn.shards.crop import Options
from ggcn.shards.pool import cores
from ggcn.shards.sources import Source

LANES = 8
PHOTOS = 4 * LANES


@dataclass(frozen=True, eq=False)
class Case:
    """Stored images and the batches requested from them."""

    folder: Path
    """shards; the same images, a file each, are in `folder/files`"""
    manifest: Manifest
    size: int
    """requested side in pixels; divides the stored one"""
    batch: int

    @property
    def lanes(self) -> Lanes:
        return Lanes(LANES, width=self.batch // LANES)

    @property
    def shrink(self) -> int:
        return self.manifest.size // self.size

    def paths(self) -> list[Path]:
        return sorted((self.folder / "files").iterdir())

    def urls(self) -> list[str]:
        return [str(self.folder / shard.name) for shard in self.manifest.shards]


def make_shards(source: Source, options: Options, out: Path, workers: int) -> Manifest:
    """The project's builder. Raises UserError when an image of the source cannot be read."""
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        built = build.build(source, {out: options}, workers)
    assert built is not None
    if built[0].rejects:
        raise UserError(f"{len(built[0].rejects)} images of {source.location} cannot be read; leave them out")
    return built[0].manifest


def select_images(location: str, options: Options, samples: int) -> tuple[Source, int]:
    """As many images of a location as give `samples` samples, and how many they give. Raises UserError."""
    source = sources.find(location)
    used, total = [], 0
    for entry in sorted(source.entries, key=lambda entry: shard_spec.name_hash(entry.name)):
        (count,) = crop.count_samples(source, options, [entry])
        used += [entry] * (count > 0)
        total += count
        if total >= samples:
            break
    if total < LANES:
        raise UserError(f"{location} gives {total} samples of {options.size} pixels; {LANES} are the least")
    return Source(location, sorted(used, key=lambda entry: entry.name), 0), total


def build_case(source: Source, options: Options, folder: Path, batch: int) -> Case:
    """Builds shards, and writes their images as files too."""
    out = folder / f"{options.format}{options.size}"
    data = make_shards(source, options, out, cores())
    (out / "files").mkdir()
    number = itertools.count()
    ranges = index_file.open_index(data).tolist()
    for shard, first, end in zip(data.shards, data.first, data.first[1:], strict=False):
        tar = (out / shard.name).read_bytes()
        for offset, size in ranges[first:end]:
            path = out / "files" / f"{next(number):09d}.{data.extension}"
            path.write_bytes(tar[offset : offset + size])
    return Case(out, data, options.size, batch)


def default_images(folder: Path) -> str:
    """The demo's photographs, or random images where they are not installed."""
    try:
        sources.find("demo:scenes")
    except UserError:
        return str(photos(folder / "images", 8, 512))
    return "demo:scenes"


def photo(seed: int, side: int) -> Image.Image:
    """A random image about as costly to decode as a photograph: amplitudes fall as frequency^-1.6."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    waves = random.standard_normal((2, 4, *frequency.shape)) / frequency**1.6
    fields = np.fft.irfft2(waves[0] + 1j * waves[1], (side, side))
    light, *colour = fields / fields.std(axis=(1, 2), keepdims=True)
    pixels = 128 + 50 * light[..., None] + 12 * np.stack(colour, axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photos(folder: Path, count: int, side: int) -> Path:
    """A folder of random images, cropped from a few large ones."""
    folder.mkdir()
    canvases = [photo(seed, 2 * side) for seed in range(2)]
    for number in range(count):
        x, y = np.random.default_rng(number).integers(0, side + 1, 2).tolist()
        canvases[number % 2].crop((x, y, x + side, y + side)).save(folder / f"{number:04d}.ppm")
    return folder


def photo_cases(folder: Path, sizes: list[int]) -> dict[int, Case]:
    """Shards of JPEGs, PHOTOS of each size, out of the same random images."""
    folder.mkdir()
    source = sources.find(str(photos(folder / "photos", PHOTOS, max(sizes))))
    return {size: build_case(source, Options(size, format="jpg"), folder, LANES) for size in sizes}
