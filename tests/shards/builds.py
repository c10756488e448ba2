"""Images, builds of shards from them, and the samples in the shards."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ggcn.cli import make_shards
from ggcn.data import index_file, manifest_file

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """An image unlike any other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(path: Path, image: Image.Image, **options: Any) -> Path:
    """Saves an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root of the mean squared difference, in 1/255."""
    return float(np.sqrt(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)))


def stripes(width: int, height: int, *colours: tuple[int, int, int]) -> Image.Image:
    """Equal stripes from left to right."""
    image = Image.new("RGB", (width, height))
    step = width // len(colours)
    for index, colour in enumerate(colours):
        image.paste(colour, (index * step, 0, (index + 1) * step, height))
    return image


def make(*arguments: object) -> int:
    """make_shards in this process."""
    return make_shards.main([str(argument) for argument in arguments])


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """make_shards as a process of its own."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**pipes, **options})  # type: ignore[call-overload]


def tree(folder: Path) -> dict[str, bytes]:
    """All files and their bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stored(out: Path) -> Iterator[tuple[str, list[int], bytes]]:
    """Every sample by its place in the index: its source, its square, its image's bytes."""
    result = manifest_file.load(out)
    places = iter(index_file.open_index(result).tolist())
    for shard in result.shards:
        data = (out / shard.name).read_bytes()
        record = json.loads((out / shard.name).with_suffix(".json").read_text())
        for (name, box), (offset, size) in zip(record["sources"], places, strict=False):
            yield name, box, data[offset : offset + size]


def samples(out: Path) -> dict[str, Image.Image]:
    """Source -> its sample, decoded; for builds with one sample per image."""
    return {name: Image.open(io.BytesIO(data)) for name, _, data in stored(out)}


def only(out: Path) -> Image.Image:
    """The one sample there is."""
    (image,) = samples(out).values()
    return image


def near(image: Image.Image, x: int, y: int, colour: tuple[int, int, int], within: int = 3) -> bool:
    """Whether a pixel has a colour, up to what JPEG and rounding change."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))
