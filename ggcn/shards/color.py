"""Colours as an sRGB screen shows them: the colour profiles of image files are applied, not dropped.

Conversions are relative colorimetric with black point compensation, as in viewers and browsers: white stays
white, and colours that sRGB does not have go to its edge.
"""

import functools
import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SPACE = "sRGB, relative colorimetric, black point compensation"
BROKEN = "the colour profile is broken; taken as sRGB"
OTHER_SPACE = "the colour profile is for another kind of image; taken as sRGB"

SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_PRIMARIES = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
D65 = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50_XYZ = np.array([0.9642, 1.0, 0.8249])

SPACES = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB ", "CMYK": "CMYK", "LAB": "Lab "}
"""colour space that a profile must have for an image of a mode"""


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """An image of mode L, I;16, RGB, CMYK or LAB -> 8-bit RGB in sRGB, and a warning if its profile was ignored.

    profile: an ICC profile of the image's own colour space; None: it is sRGB (or grey, CMYK without one).
    """
    warning = ""
    if profile and isinstance(profile, bytes):
        transform, warning = _transform(profile, image.mode)
        if isinstance(transform, np.ndarray):
            return Image.fromarray(transform[np.asarray(image)]), ""
        if transform:
            return ImageCms.applyTransform(image, transform), ""  # type: ignore[return-value]
    return image if image.mode == "RGB" else eight_bits(image).convert("RGB"), warning


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey, rounded; other images as they are."""
    if image.mode != "I;16":
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[Any, str]:
    """The way from a profile to sRGB, None where that moves nothing or cannot be; the warning of `to_srgb`.

    Of grey, whose darks lcms's fast way gets wrong, it is a table: the colour of every value, uint8 [values, 3].
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != SPACES[mode]:
            return None, OTHER_SPACE
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if is_grey(profile) else 0),
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None, BROKEN
    if _is_identity(transform, mode):
        return None, ""
    return (_table(transform, mode) if is_grey(profile) else transform), ""


def _table(transform: Any, mode: str) -> np.ndarray:
    """What a transform makes of every value of grey, uint8 [values, 3]."""
    values = np.arange(256, dtype=np.uint8) if mode == "L" else np.arange(65536, dtype=np.uint16)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(values[None]), transform))[0]


def _is_identity(transform: Any, mode: str) -> bool:
    """Whether no colour moves by more than 2 of 255: so do the many profiles that say sRGB, each in its way."""
    if mode not in ("L", "RGB"):
        return False
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    if mode == "L":
        before = np.arange(256, dtype=np.uint8)[None]
    else:
        before = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    after = np.asarray(ImageCms.applyTransform(Image.fromarray(before), transform)).astype(int)
    return bool(np.abs(after - (before[..., None] if mode == "L" else before)).max() <= 2)


def is_grey(profile: object) -> bool:
    """Whether an ICC profile, if it is one, is for grey images."""
    return isinstance(profile, bytes) and profile[16:20] == b"GRAY"


def declared(image: Image.Image) -> bytes | None:
    """The RGB profile that follows from what a file says without an ICC profile; None: it is sRGB.

    That is a PNG's gAMA and cHRM chunks, unless it has sRGB too, and the mark of cameras for Adobe RGB (EXIF's
    interoperability index R03).
    """
    if image.format == "PNG":
        gamma, places = image.info.get("gamma"), image.info.get("chromaticity")
        return None if "srgb" in image.info else _png_profile(gamma, tuple(places) if places else None)
    return matrix_profile(ADOBE_PRIMARIES, D65, 563 / 256) if _is_adobe(image) else None


@functools.lru_cache(maxsize=16)
def _png_profile(gamma: float | None, places: tuple[float, ...] | None) -> bytes | None:
    """places: chromaticities (x, y) of white, red, green, blue."""
    if not gamma or not 0.1 <= gamma <= 5:
        return None  # a cHRM alone does not say how to compute with it
    white, primaries = (places[:2], places[2:]) if places and len(places) == 8 else (D65, SRGB_PRIMARIES)
    try:
        return matrix_profile(primaries, white, 1 / gamma)
    except (ArithmeticError, np.linalg.LinAlgError, struct.error, ValueError):
        return None


def _is_adobe(image: Image.Image) -> bool:
    if b"R03" not in (image.info.get("exif") or b""):
        return False
    try:
        index = image.getexif().get_ifd(0xA005).get(1)
    except Exception:  # broken EXIF meets Pillow's parser in many ways
        return False
    return str(index).startswith("R03")


def matrix_profile(primaries: tuple[float, ...], white: tuple[float, ...], gamma: float) -> bytes:
    """An ICC profile (version 2) of an RGB space: chromaticities (x, y) of red, green, blue and white.

    gamma: exponent from stored values to light; around 2.2 it stands for the curve of sRGB, save for Adobe RGB's
    563/256. Raises ValueError where the primaries span no space.
    """
    columns = np.array([_xyz(*primaries[at : at + 2]) for at in (0, 2, 4)]).T
    target = _xyz(*white)
    matrix = columns * np.linalg.solve(columns, target)
    scale = np.diag((BRADFORD @ D50_XYZ) / (BRADFORD @ target))
    adapted = np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ matrix
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 100:
        raise ValueError("primaries that span no space")
    tags = [(b"wtpt", _xyz_tag(D50_XYZ))]
    tags += [
        (key, _xyz_tag(column)) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)
    ]
    tags += [(key, _curve_tag(gamma)) for key in (b"rTRC", b"gTRC", b"bTRC")]
    return _icc(tags)


def _xyz(x: float, y: float) -> np.ndarray:
    if y <= 0:
        raise ValueError("a chromaticity without luminance")
    return np.array([x / y, 1, (1 - x - y) / y])


def _xyz_tag(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _curve_tag(gamma: float) -> bytes:
    if gamma != 563 / 256 and abs(gamma - 2.2) < 0.01:
        light = np.linspace(0, 1, 1024)
        light = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
        values = (light * 65535).round().astype(">u2").tobytes()
        return b"curv\0\0\0\0" + struct.pack(">I", 1024) + values
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def _icc(tags: list[tuple[bytes, bytes]]) -> bytes:
    """A display profile's header, table of tags and tags."""
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, data in tags:
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    head += struct.pack(">3i", *(round(float(value) * 65536) for value in D50_XYZ))
    return head.ljust(128, b"\0") + table + body
