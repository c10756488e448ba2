"""A user's images and masks, resized to a model's size."""

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


def images(path: str, size: int, limit: int | None = None) -> tuple[list[str], Tensor]:
    """Names and pixels, [n, 3, size, size] in [-1, 1], of an image file or of a folder, zip or tar of them (the
    first `limit` by name): largest centred squares, resized as make_shards does.

    Raises UserError when there are none or one cannot be read.
    """
    encoded = _read_file(Path(path)) if _is_image(path) else _read_all(path, limit)
    pixels = [_decode_square(name, data, size) for name, data in encoded]
    return [name for name, _ in encoded], torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1


def _is_image(path: str) -> bool:
    """Whether a path is a file and no archive; whether it holds an image shows when it is decoded."""
    return Path(path).is_file() and (
        sources.is_image(Path(path).name) or not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    )


def _read_file(path: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes())]


def _read_all(path: str, limit: int | None) -> list[tuple[str, bytes]]:
    entries = sources.find(path).entries[:limit]
    return [(str(PurePosixPath(entry.name)), sources.read(path, entry)) for entry in entries]


def _decode_square(name: str, data: bytes, size: int) -> np.ndarray:
    options = Options(size)
    try:
        image, scale, (width, height) = decode(data, options, {})
        return np.asarray(crop_and_resize(image, options.boxes(width, height)[0], scale, size))
    except Exception as error:  # decoders raise all kinds of errors for damaged images
        raise UserError(f"{name} cannot be read ({reject_reason(error)}); fix it or leave it out") from None


def mask(name: str, size: int) -> Tensor:
    """Which pixels of an image are known, bool [size, size]: all but those of its centre (half a side), all but its
    left half, or those that are black in a square image file.

    Raises UserError when there is no such file, or it leaves nothing known or nothing to fill in.
    """
    known = torch.ones(size, size, dtype=torch.bool)
    quarter = size // 4
    if name == "centre":
        known[quarter : size - quarter, quarter : size - quarter] = False
    elif name == "left":
        known[:, : size // 2] = False
    else:
        known = _black_pixels(Path(name), size)
    if known.all() or not known.any():
        reason = "nothing to fill in (white)" if known.all() else "nothing known (black)"
        raise UserError(f"--mask {name} has {reason} at {size} x {size} pixels; fix it")
    return known


def _black_pixels(path: Path, size: int) -> Tensor:
    """Bool [size, size], True where all pixels of the file, decoded as any other image, are darker than medium grey."""
    try:
        with Image.open(io.BytesIO(files.read_bytes(path)), formats=image_file.formats()) as image:
            grey = to_rgb(ImageOps.exif_transpose(image))[0].convert("L")
    except FileNotFoundError:
        raise UserError(f"there is no --mask {path}; say {', '.join(MASKS)} or a PNG file") from None
    except Exception as error:  # decoders raise all kinds of errors for damaged images
        raise UserError(
            f"--mask {path} is not an image ({reject_reason(error)}); say {', '.join(MASKS)} or a PNG file"
        ) from None
    if grey.width != grey.height:
        raise UserError(f"--mask {path} has {grey.width} x {grey.height} pixels; it must be square")
    white = grey.point([255 * (value > 127) for value in range(256)])
    share = np.asarray(white.resize((size, size), Image.Resampling.BOX))
    return torch.from_numpy(share == 0)
