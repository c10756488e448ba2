"""Files of single images, and their samples."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ggcn.shards import color, crop
from ggcn.shards.crop import Options, samples_of

BRICK = (200, 60, 40)
ADOBE = color.matrix_profile(color.ADOBE_PRIMARIES, color.D65, 563 / 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sample(data: bytes, options: Options | None = None) -> Image.Image:
    """The one sample of an image's file."""
    ((_, encoded),) = samples_of(data, options or Options(32), {})
    return Image.open(io.BytesIO(encoded))


def middle(data: bytes) -> tuple[int, ...]:
    """The colour in the middle of its sample."""
    return sample(data).getpixel((16, 16))  # type: ignore[return-value]


def warnings_about(data: bytes) -> list[str]:
    """What is said of an image that is taken."""
    return crop.decode(data, Options(32), {})[0].info["warnings"]


def refusal(data: bytes, options: Options | None = None) -> str:
    """Why it is left out."""
    with pytest.raises(Exception) as error:  # noqa: PT011
        sample(data, options)
    return crop.reject_reason(error.value)  # type: ignore[arg-type]


def plain(colour: Any = BRICK, mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, size, colour)


def noisy(height: int = 40, width: int = 48) -> Image.Image:
    """An image with many colours."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunks(image: Image.Image, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks before its pixels."""
    data = saved(image)
    at = data.index(b"IDAT") - 4
    plan_splits = [
        struct.pack(">I", len(body)) + key + body + struct.pack(">I", zlib.crc32(key + body))
        for key, body in more
    ]
    return data[:at] + b"".join(plan_splits) + data[at:]


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey with an exponent."""
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    icc = bytearray(color._icc([(b"wtpt", color._xyz_tag(color.D50_XYZ)), (b"kTRC", curve)]))
    icc[16:20] = b"GRAY"
    return bytes(icc)
