"""Decodes stored images to the requested size."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image

from ggcn.config.data import DataConfig
from ggcn.config.grids import ladder
from ggcn.data.manifest import Manifest
from ggcn.errors import UserError
from ggcn.redact import shard_folder

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
JPEG_SCALES = (8, 4, 2)
"""a JPEG can be decoded at 1/8, 1/4 or 1/2 of its side, in a fraction of the time"""
START_OF_SCAN = 0xDA
# JPEG color spaces that simplejpeg converts to the same bits as PIL; it has other formulas for the rest
EXACT_SPACES = {"RGB": ("YCbCr", "RGB", "Gray"), "L": ("Gray",)}
SIMPLEJPEG_MODES = {"RGB": "RGB", "L": "GRAY"}


MAX_HEADERS = 4
"""headers that a decoder remembers; make_shards writes the same one into all images"""


def header_end(data: bytes) -> int:
    """Where the header of a JPEG ends and its pixels begin: all that says how to decode them lies before; 0 where that
    cannot be told."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 < len(data):
        marker = data[position + 1]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == START_OF_SCAN:
            return position if position < len(data) else 0
    return 0


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Turns a folder's stored images into the requested ones; sides are in pixels."""

    extension: str
    mode: str
    stored: int
    scale: int
    """the image is decoded at 1/scale of its side"""
    crop: int
    """side of the random square that is kept, as decoded"""
    pool: int
    """pixels averaged along a side"""
    headers: list[bytes] = dataclasses.field(default_factory=list, compare=False, repr=False)
    """beginnings of JPEGs, up to their pixels, that are known to be as expected: images of one encoder share them, and
    a comparison takes a hundredth of the time in which a header is parsed"""

    def decode(self, data: bytes, random_bits: int, out: np.ndarray) -> None:
        """Writes the image into `out`, uint8 [size, size, channels]; 64 random bits choose its crop.

        Raises all that PIL raises for damaged files, and ValueError for an image of another size.
        """
        if not (self.extension == "jpg" and self._decode_jpeg(data, random_bits, out)):
            image = self._open(data)
            if self.crop < image.width:
                image = image.crop(self._square(random_bits))
            if self.pool > 1:
                image = image.reduce(self.pool)
            out[...] = np.frombuffer(image.tobytes(), np.uint8).reshape(out.shape)

    def _open(self, data: bytes) -> Image.Image:
        """The image opened by PIL, to be decoded at 1/scale. Raises ValueError for another size."""
        image: Image.Image = Image.open(io.BytesIO(data), formats=(FORMATS[self.extension],))
        if image.size != (self.stored, self.stored):
            raise ValueError(
                f"{image.width} x {image.height} pixels instead of {self.stored} x {self.stored}"
            )
        if self.scale > 1:
            image.draft(self.mode, (self.stored // self.scale,) * 2)
        return image if image.mode == self.mode else image.convert(self.mode)

    def _decode_jpeg(self, data: bytes, random_bits: int, out: np.ndarray) -> bool:
        """Writes a JPEG into `out`, several times faster than PIL and with the same bits.

        Returns False for unusual or damaged files, which are left to PIL.
        """
        side = self.stored // self.scale
        try:
            if not data.startswith(tuple(self.headers)) and not self._has_valid_header(data):
                return False
            full = out if len(out) == side else np.empty((side, side, out.shape[2]), np.uint8)
            simplejpeg.decode_jpeg(
                data, SIMPLEJPEG_MODES[self.mode], min_height=side, min_width=side, buffer=full
            )
        except ValueError:
            return False
        if full is not out:
            out[...] = self._crop_and_pool(full, random_bits)
        return True

    def _has_valid_header(self, data: bytes) -> bool:
        """Whether a JPEG has the expected size and colors; remembers its header. Raises ValueError for damage."""
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if height != self.stored or width != self.stored or space not in EXACT_SPACES[self.mode]:
            return False
        if len(self.headers) < MAX_HEADERS and (end := header_end(data)):
            self.headers.append(data[:end])
        return True

    def _crop_and_pool(self, full: np.ndarray, random_bits: int) -> np.ndarray:
        """The random square of a decoded image, averaged down, uint8 [size, size, channels]."""
        left, top, right, bottom = self._square(random_bits)
        square = full[top:bottom, left:right]
        if self.pool == 1:
            return square
        pooled = Image.fromarray(square.squeeze(-1) if square.shape[-1] == 1 else square).reduce(self.pool)
        return np.asarray(pooled).reshape(pooled.height, pooled.width, -1)

    def _square(self, random_bits: int) -> tuple[int, int, int, int]:
        """The random square as left, top, right, bottom."""
        positions = self.stored // self.scale - self.crop + 1
        x, y = (random_bits & 0xFFFFFFFF) % positions, (random_bits >> 32) % positions
        return x, y, x + self.crop, y + self.crop


def image_decoder(url: str, data: Manifest, size: int, crop: int) -> ImageDecoder:
    """The decoder of a folder for `size` x `size` images, from random squares of side `crop` if it is not 0.

    Raises UserError unless the side is a multiple of `size`; the message names `url`.
    """
    side = crop or data.size
    if side > data.size or side < size or side % size:
        images = f"crops of {crop} out of {data.size}" if crop else f"images of {data.size}"
        raise UserError(
            f"{images} pixels a side, from {shard_folder(url)}, cannot be averaged down to {size}; "
            f"choose a size that divides it, or build shards with --size {size}"
        )
    scales = JPEG_SCALES if data.extension == "jpg" else ()
    pool = side // size
    scale = next((s for s in scales if pool % s == 0 and data.size % s == 0), 1)
    mode = "RGB" if data.channels == 3 else "L"
    return ImageDecoder(data.extension, mode, data.size, scale, side // scale, pool // scale)


def refuse_downsampling(url: str, data: Manifest, grids: Sequence[int], config: DataConfig) -> None:
    """Raises UserError when images would be averaged down to the finest of `grids` and data.size is not set."""
    side = config.crop or data.size
    if config.size or side <= grids[-1]:
        return
    finest = side & -side  # the largest power of two that divides it
    larger = f"{_override(ladder(grids, finest))} to train at {finest}, or " if finest > grids[-1] else ""
    raise UserError(
        f"{'crops' if config.crop else 'images'} of {side} pixels a side, from {shard_folder(url)}, would be "
        f"averaged down to the model's {grids[-1]}; add {larger}{_override(grids)} to train at {grids[-1]} on purpose"
    )


def _override(grids: Sequence[int]) -> str:
    return f"model.grids=[{','.join(map(str, grids))}]"
