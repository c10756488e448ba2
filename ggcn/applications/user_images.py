"""Pictures and masks that a user gives, brought to a model's size."""

import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ggcn import files
from ggcn.errors import UserError
from ggcn.shards import image_file, sources
from ggcn.shards.crop import Options, crop_and_resize, decode, reject_reason, to_rgb

MASKS = ("centre", "left")


def images(place: str, size: int, most: int | None = None) -> tuple[list[str], Tensor]:
    """Names and pixels, [n, 3, size, size] in [-1, 1], of an image file or of a folder, zip or tar of them (by name,
    the first `most`): largest centred squares, resized as make_shards does.

    Raises UserError when there are none or one cannot be read.
    """
    found = _one(Path(place)) if _is_image(place) else _all(place, most)
    pixels = [_square(name, data, size) for name, data in found]
    return [name for name, _ in found], torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1


def _is_image(place: str) -> bool:
    """A file that is none of the archives; whether it is an image shows when it is read."""
    return Path(place).is_file() and (
        sources.is_image(Path(place).name) or not (zipfile.is_zipfile(place) or tarfile.is_tarfile(place))
    )


def _one(path: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes())]


def _all(place: str, most: int | None) -> list[tuple[str, bytes]]:
    entries = sources.find(place).entries[:most]
    return [(str(PurePosixPath(entry.name)), sources.read(place, entry)) for entry in entries]


def _square(name: str, data: bytes, size: int) -> np.ndarray:
    options = Options(size)
    try:
        image, scale, (width, height) = decode(data, options, {})
        return np.asarray(crop_and_resize(image, options.boxes(width, height)[0], scale, size))
    except Exception as error:  # decoders meet damage with whatever it makes them stumble over
        raise UserError(f"{name} cannot be read ({reject_reason(error)}); mend it or leave it out") from None


def mask(word: str, size: int) -> Tensor:
    """What is known of a picture, bool [size, size], True where it is: all but its centre (half a side), all but its
    left half, or what is black in a square picture file.

    Raises UserError when there is no such file, or it leaves nothing known or nothing to fill in.
    """
    known = torch.ones(size, size, dtype=torch.bool)
    quarter = size // 4
    if word == "centre":
        known[quarter : size - quarter, quarter : size - quarter] = False
    elif word == "left":
        known[:, : size // 2] = False
    else:
        known = _black(Path(word), size)
    if known.all() or not known.any():
        lacks = "nothing to fill in (white)" if known.all() else "nothing known (black)"
        raise UserError(f"--mask {word} has {lacks} at {size} x {size} pixels; mend it")
    return known


def _black(path: Path, size: int) -> Tensor:
    """Where no pixel of the file, read as any other image, is lighter than medium grey."""
    try:
        with Image.open(io.BytesIO(files.read_bytes(path)), formats=image_file.formats()) as image:
            grey = to_rgb(ImageOps.exif_transpose(image))[0].convert("L")
    except FileNotFoundError:
        raise UserError(f"there is no --mask {path}; say {', '.join(MASKS)} or a PNG file") from None
    except Exception as error:  # decoders meet damage with whatever it makes them stumble over
        raise UserError(
            f"--mask {path} is no picture ({reject_reason(error)}); say {', '.join(MASKS)} or a PNG file"
        ) from None
    if grey.width != grey.height:
        raise UserError(f"--mask {path} has {grey.width} x {grey.height} pixels; it must be square")
    white = grey.point([255 * (value > 127) for value in range(256)])
    share = np.asarray(white.resize((size, size), Image.Resampling.BOX))
    return torch.from_numpy(share == 0)
