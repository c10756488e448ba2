"""Shards to measure on, out of photographs or out of random pictures."""

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
    """Stored images and what is wanted of them."""

    folder: Path
    """shards; the same images, a file each, are in `folder/files`"""
    manifest: Manifest
    size: int
    """side in pixels that is asked for, a whole fraction of the stored one"""
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
        made = build.build(source, {out: options}, workers)
    assert made is not None
    if made[0].rejects:
        raise UserError(f"{len(made[0].rejects)} images of {source.location} cannot be read; give whole ones")
    return made[0].manifest


def chosen(place: str, options: Options, samples: int) -> tuple[Source, int]:
    """As many images of a place as make `samples` samples, and how many they make. Raises UserError."""
    source = sources.find(place)
    used, total = [], 0
    for entry in sorted(source.entries, key=lambda entry: shard_spec.name_hash(entry.name)):
        (count,) = crop.count_samples(source, options, [entry])
        used += [entry] * (count > 0)
        total += count
        if total >= samples:
            break
    if total < LANES:
        raise UserError(f"{place} gives {total} samples of {options.size} pixels; {LANES} are the least")
    return Source(place, sorted(used, key=lambda entry: entry.name), 0), total


def prepared(source: Source, options: Options, folder: Path, batch: int) -> Case:
    """Builds shards, and lays their images beside them in files."""
    out = folder / f"{options.format}{options.size}"
    found = make_shards(source, options, out, cores())
    (out / "files").mkdir()
    number = itertools.count()
    places = index_file.open_index(found).tolist()
    for shard, first, end in zip(found.shards, found.first, found.first[1:], strict=False):
        data = (out / shard.name).read_bytes()
        for offset, size in places[first:end]:
            path = out / "files" / f"{next(number):09d}.{found.extension}"
            path.write_bytes(data[offset : offset + size])
    return Case(out, found, options.size, batch)


def default_images(folder: Path) -> str:
    """The demo's photographs, or random pictures where they are not installed."""
    try:
        sources.find("demo:scenes")
    except UserError:
        return str(photos(folder / "images", 8, 512))
    return "demo:scenes"


def photo(seed: int, side: int) -> Image.Image:
    """A random picture about as costly to decode as a photograph: amplitudes fall as frequency^-1.6."""
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
    """A folder of random pictures, cut out of a few large ones."""
    folder.mkdir()
    canvases = [photo(seed, 2 * side) for seed in range(2)]
    for number in range(count):
        x, y = np.random.default_rng(number).integers(0, side + 1, 2).tolist()
        canvases[number % 2].crop((x, y, x + side, y + side)).save(folder / f"{number:04d}.ppm")
    return folder


def photo_cases(folder: Path, sizes: list[int]) -> dict[int, Case]:
    """Shards of JPEGs, PHOTOS of each size, out of the same random pictures."""
    folder.mkdir()
    source = sources.find(str(photos(folder / "photos", PHOTOS, max(sizes))))
    return {size: prepared(source, Options(size, format="jpg"), folder, LANES) for size in sizes}
