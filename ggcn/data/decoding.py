"""How a stored image becomes pixels of the side that is asked for."""

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
JPEG_SCALES = (8, 4, 2)  # a JPEG can be decoded at these fractions of its side, for a fraction of the time
# JPEG colours out of which simplejpeg makes PIL's very pixels; it has other formulas for the rest
EXACT = {"RGB": ("YCbCr", "RGB", "Gray"), "L": ("Gray",)}
COLOURS = {"RGB": "RGB", "L": "GRAY"}


@dataclasses.dataclass(frozen=True)
class View:
    """How a folder's stored images become the ones asked for; sides in pixels."""

    extension: str
    mode: str
    stored: int
    scale: int
    """the image is decoded at 1/scale of its side"""
    crop: int
    """side of the random square that is kept, as decoded"""
    pool: int
    """pixels averaged along a side"""

    def decode(self, data: bytes, dice: int, out: np.ndarray) -> None:
        """Writes the image into `out`, uint8 [size, size, channels]; 64 random bits choose its crop.

        Raises all that PIL raises for damaged files, and ValueError for an image of another size.
        """
        if self.extension != "jpg" or not self._quickly(data, dice, out):
            image = self._opened(data)
            if self.crop < image.width:
                image = image.crop(self._square(dice))
            if self.pool > 1:
                image = image.reduce(self.pool)
            out[...] = np.frombuffer(image.tobytes(), np.uint8).reshape(out.shape)

    def _opened(self, data: bytes) -> Image.Image:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(FORMATS[self.extension],))
        if image.size != (self.stored, self.stored):
            raise ValueError(
                f"{image.width} x {image.height} pixels instead of {self.stored} x {self.stored}"
            )
        if self.scale > 1:
            image.draft(self.mode, (self.stored // self.scale,) * 2)
        return image if image.mode == self.mode else image.convert(self.mode)

    def _quickly(self, data: bytes, dice: int, out: np.ndarray) -> bool:
        """A JPEG, several times as fast as PIL and to the same bit, into `out`.

        False for all that is unusual or damaged in the least: what becomes of that is PIL's to say.
        """
        side = self.stored // self.scale
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height != self.stored or width != self.stored or colours not in EXACT[self.mode]:
                return False
            whole = out if len(out) == side else np.empty((side, side, out.shape[2]), np.uint8)
            simplejpeg.decode_jpeg(data, COLOURS[self.mode], min_height=side, min_width=side, buffer=whole)
        except ValueError:
            return False
        if whole is not out:
            out[...] = self._cut(whole, dice)
        return True

    def _cut(self, whole: np.ndarray, dice: int) -> np.ndarray:
        left, top, right, bottom = self._square(dice)
        square = whole[top:bottom, left:right]
        if self.pool == 1:
            return square
        pooled = Image.fromarray(square.squeeze(-1) if square.shape[-1] == 1 else square).reduce(self.pool)
        return np.asarray(pooled).reshape(pooled.height, pooled.width, -1)

    def _square(self, dice: int) -> tuple[int, int, int, int]:
        places = self.stored // self.scale - self.crop + 1
        x, y = (dice & 0xFFFFFFFF) % places, (dice >> 32) % places
        return x, y, x + self.crop, y + self.crop


def view(url: str, data: Manifest, size: int, crop: int) -> View:
    """How to get `size` x `size` images, from random squares of side `crop` if it is not 0.

    Raises UserError unless the side is a multiple of `size`; `url` says in it where the data lie.
    """
    side = crop or data.size
    if side > data.size or side < size or side % size:
        what = f"crops of {crop} out of {data.size}" if crop else f"images of {data.size}"
        raise UserError(
            f"{what} pixels a side, from {shard_folder(url)}, cannot be averaged down to {size}; "
            f"ask for a whole fraction of that, or build shards with --size {size}"
        )
    scales = JPEG_SCALES if data.extension == "jpg" else ()
    pool = side // size
    scale = next((s for s in scales if pool % s == 0 and data.size % s == 0), 1)
    mode = "RGB" if data.channels == 3 else "L"
    return View(data.extension, mode, data.size, scale, side // scale, pool // scale)


def refuse_smaller(url: str, data: Manifest, grids: Sequence[int], config: DataConfig) -> None:
    """Raises UserError when images would be averaged down to the finest of `grids` though nobody asked for that."""
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
