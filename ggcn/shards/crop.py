"""Turns an image into one or more square samples: decode, crop, resize, encode."""

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ggcn.errors import UserError
from ggcn.shards import color, image_file, sources
from ggcn.shards.entry import Entry
from ggcn.shards.pool import advance

Decoded = tuple[Image.Image, float, tuple[int, int]]
"""upright sRGB image (its `info` has warnings about the file), its scale, and its width and height at scale 1"""
T = TypeVar("T")
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the upright image"""


@dataclass(frozen=True)
class Options:
    """How images become samples; another set of options is another data set."""

    size: int
    """pixels along a side"""
    crop: str = "center"
    """center: the largest centred square; top: the largest square at the top; grid: many squares"""
    scales: tuple[int, ...] = (1, 2)
    """grid only: squares of size x scale pixels, side by side, for every scale"""
    format: str = "png"
    """png, jpg or webp"""
    quality: int | None = None
    """1..100 for jpg (None: 95) and webp (None: lossless)"""
    shuffle_seed: int = 0
    shard_samples: int | None = None
    """maximum of samples in a shard, unless one image has more; None: see `samples_per_shard`"""
    holdout: float = 0.0
    """share of the images that is held out, 0 <= share < 1"""
    max_pixels: int = image_file.MAX_PIXELS
    """images with more are left out: a small file can claim any number, and a worker's memory is finite.
    Unlike the rest it may change from one build in a folder to the next: see `identity`."""

    def __post_init__(self) -> None:
        checks = [
            (self.size >= 1, f"size must be at least 1 pixel, not {self.size}"),
            (all(scale >= 1 for scale in self.scales), "every scale must be at least 1"),
            (0 <= self.holdout < 1, f"holdout is a share, at least 0 and below 1, not {self.holdout}"),
            (self.shard_samples is None or self.shard_samples >= 1, "shard-samples must be at least 1"),
            (
                self.quality is None or 1 <= self.quality <= 100,
                f"quality runs from 1 to 100, not {self.quality}",
            ),
            (self.quality is None or self.format != "png", "png is lossless and takes no quality"),
            (self.max_pixels >= 1, f"max-pixels must be at least 1, not {self.max_pixels}"),
        ]
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def identity(self) -> dict[str, Any]:
        """What makes a sample out of an image. Which images are too large is compared image by image."""
        return {key: value for key, value in asdict(self).items() if key != "max_pixels"}

    def boxes(self, width: int, height: int) -> list[Box]:
        """The squares to crop from an upright image of width x height pixels; none if it is too small."""
        if self.crop == "grid":
            return [box for scale in self.scales for box in tiles(width, height, self.size * scale)]
        side = min(width, height)
        left, top = (width - side) // 2, 0 if self.crop == "top" else (height - side) // 2
        return [(left, top, left + side, top + side)]

    def smallest_side(self, width: int, height: int) -> int:
        """Side in pixels of the smallest square that `boxes` can return."""
        return self.size * min(self.scales) if self.crop == "grid" else min(width, height)

    def samples_per_shard(self, samples: int) -> int:
        """Samples in a shard of a data set of `samples`.

        Up to 64 MB uncompressed and up to 1024, but fewer where that would make less than 16 shards, so that
        small data sets keep all cores busy too; never below 8. A grid's shards are to mix several images:
        up to 4096, and 4 shards will do.
        """
        most, shards = (4096, 4) if self.crop == "grid" else (1024, 16)
        fits = (64 << 20) // (3 * self.size**2)
        return self.shard_samples or max(8, min(most, fits, math.ceil(samples / shards)))

    def encoding(self) -> dict[str, Any]:
        """Keyword arguments of PIL's save. Fast settings: the costlier ones make files 3 to 8 % smaller."""
        if self.format == "png":
            return {"format": "PNG", "compress_level": 1}
        if self.format == "jpg":
            return {"format": "JPEG", "quality": self.quality or 95, "subsampling": 0}
        if self.quality is None:
            return {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
        return {"format": "WEBP", "quality": self.quality}


def tiles(width: int, height: int, side: int) -> list[Box]:
    """As many squares as fit side by side, centred; rows from the top."""
    columns, rows = width // side, height // side
    left, top = (width - columns * side) // 2, (height - rows * side) // 2
    starts = [(left + column * side, top + row * side) for row in range(rows) for column in range(columns)]
    return [(x, y, x + side, y + side) for x, y in starts]


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Converts any mode to 8-bit sRGB; returns warnings about what the file leaves undefined.

    Grey of more bits is scaled, colours are converted by the file's profile, what is transparent shows white.
    Raises image_file.UnusableImage for pixels whose range is unknown (floats, integers beyond 16 bits).
    """
    icc, declared = image.info.get("icc_profile"), color.declared(image)
    opaque = image_file.opaque_16_bits(image)
    image = image_file.to_16_bits(image)
    few_bits = image_file.has_few_bits(image)
    image, alpha = _split(image, has_grey_profile=color.is_grey(icc))
    alpha = opaque or alpha
    if image.mode not in color.SPACES or (not icc and declared):
        image = color.eight_bits(image).convert("RGB")
    image, warning = color.to_srgb(image, icc or declared)
    if alpha is not None:
        image = image.convert("RGBA")
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image, [warning] * bool(warning) + [image_file.FEW_BITS] * few_bits


def _split(image: Image.Image, has_grey_profile: bool) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image (mode L if they are grey) and its alpha, if it has any."""
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return image.convert("L") if grey else image, None
    rgba = image.convert("RGBA")
    if has_grey_profile and image.mode == "RGBA":  # Pillow opens a PNG's 16-bit grey with alpha as colour
        red, green, blue, _ = rgba.split()
        grey = red.tobytes() == green.tobytes() == blue.tobytes()
    return rgba.getchannel("R") if grey else rgba.convert("RGB"), rgba.getchannel("A")


def decode(data: bytes, options: Options, cache: dict[tuple[int, int], Decoded]) -> Decoded:
    """Decodes an image file. Raises what PIL raises.

    JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels needed: LANCZOS does the rest, and
    the result differs from a full decode by about 1 of 255 (rms). `cache` has what was decoded for other options at
    the same scale. Metadata that Pillow stumbles over is left out.
    """
    return _with_repairs(lambda plain: _decode(plain, options, cache), data)


def _with_repairs(function: Callable[[bytes], T], data: bytes) -> T:
    """`function` of a file; if it fails, of the file without metadata that may be damaged."""
    try:
        return function(data)
    except (MemoryError, image_file.UnusableImage):
        raise
    except Exception as error:
        for plain in image_file.without_damage(data):
            try:
                return function(plain)
            except (MemoryError, image_file.UnusableImage):
                raise
            except Exception:  # noqa: S112 (the first error is raised below)
                continue
        raise error


def _decode(data: bytes, options: Options, cache: dict[tuple[int, int], Decoded]) -> Decoded:
    with image_file.open_image(data, options.max_pixels) as image:
        (width, height), scale = image.size, 1.0
        spare = options.smallest_side(width, height) / (2 * options.size)
        if spare >= 2 and (drafted := image.draft(image.mode, (int(width / spare), int(height / spare)))):
            scale = drafted[1][2] / width
        lying = image.size
        if lying not in cache:
            warnings = [image_file.FIRST_OF_MANY] if image_file.is_first_of_many(image) else []
            image.load()
            pixels, more = to_rgb(image)
            pixels = image_file.upright(pixels, image)
            upright = (width, height) if pixels.size == lying else (height, width)
            pixels.info = {"warnings": warnings + more}
            cache[lying] = pixels, scale, upright
        return cache[lying]


def crop_and_resize(image: Image.Image, box: Box, scale: float, size: int) -> Image.Image:
    """The square `box` of an image decoded at `scale`, as size x size pixels."""
    left, top, right, bottom = (edge * scale for edge in box)
    if right - left == bottom - top == size and left.is_integer() and top.is_integer():
        return image.crop((int(left), int(top), int(right), int(bottom)))
    area = (left, top, right, bottom)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=area, reducing_gap=3.0)


def encode(image: Image.Image, options: Options) -> bytes:
    """An image's encoded file, without the metadata of its source."""
    image.info = {}
    buffer = io.BytesIO()
    image.save(buffer, **options.encoding())
    return buffer.getvalue()


def samples_of(
    data: bytes, options: Options, cache: dict[tuple[int, int], Decoded]
) -> list[tuple[Box, bytes]]:
    """The samples of an image file as (square, encoded image); see `decode`. Raises what PIL raises."""
    image, scale, (width, height) = decode(data, options, cache)
    boxes = options.boxes(width, height)
    if not boxes:
        raise ValueError(f"{width} x {height} pixels are too small for a square of the grid")
    return [(box, encode(crop_and_resize(image, box, scale, options.size), options)) for box in boxes]


def reject_reason(error: Exception) -> str:
    """Why an image was rejected, in a text that depends neither on its path nor on the run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0] or type(error).__name__


def count_samples(source: sources.Source, options: Options, entries: list[Entry]) -> list[int]:
    """Number of samples of each image, by its header; 0 where that cannot be read."""
    return [_count(source.location, options, entry) for entry in entries]


def _count(location: str, options: Options, entry: Entry) -> int:
    try:
        return _with_repairs(lambda data: _squares(data, options), sources.read(location, entry))
    except Exception:  # it fails again, and is then listed, when the shard is written
        return 0
    finally:
        advance()


def _squares(data: bytes, options: Options) -> int:
    with image_file.open_image(data, options.max_pixels) as image:
        return len(options.boxes(*image.size))
