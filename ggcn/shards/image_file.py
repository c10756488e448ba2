"""Opens image files of all formats for their pixels, even if their metadata is damaged."""

import functools
import importlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""twice Pillow's warning threshold, where it takes an image for a decompression bomb"""

FIRST_OF_MANY = "several pages or frames; the first is taken"
FEW_BITS = "16 bits with no value above 4095; dark unless the file declares its largest value"
HEIF_ADVICE = "HEIC needs the package pillow-heif: pip install pillow-heif"
AVIF_ADVICE = "AVIF needs Pillow 11.3 or newer: pip install --upgrade pillow"
POSTSCRIPT = "PostScript (EPS) is a program, which is not run; convert it to PNG"
POSTSCRIPT_MARKS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
DELEGATING = {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5"}
"""formats for which Pillow starts a program (EPS), asks another handler, or opens what lies inside as any format"""
COMMON = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG")
"""formats that Pillow tries first"""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# what the pixels depend on; the rest (text, times, thumbnails, histograms) is left out of a PNG that fails
PNG_CHUNKS = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
# JFIF, EXIF, the colour profile and Adobe's mark of inverted colours
JPEG_APPS = {0xE0: b"", 0xE1: b"Exif\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
ICC_PROFILE = 34675
# sizes, kinds and places of the pixels, palette, alpha, number format and what decompression needs
TIFF_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 281, 284, 292, 293, 317, 320}
TIFF_TAGS |= {322, 323, 324, 325, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532}
TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""bytes of a value by its kind; 1 for the rest"""


class UnusableImage(ValueError):
    """An image that is rejected for its kind, not because it is damaged."""


@contextmanager
def open_image(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """A file's image, not decoded yet, without Pillow's own limit on pixels until the end of the block.

    Raises UnusableImage for more than `max_pixels`, and when a package is missing; and what Pillow raises.
    """
    pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with _identified(data) as image:
            if image.width * image.height > max_pixels:
                raise UnusableImage(
                    f"{image.width} x {image.height} pixels are too many; if they are meant, allow them with "
                    f"--max-pixels {image.width * image.height}"
                )
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_limit


def _identified(data: bytes) -> Image.Image:
    advice = _missing_package(data)
    if advice and not is_readable_now(advice, 0):
        raise UnusableImage(advice)
    try:
        return Image.open(io.BytesIO(data), formats=formats())
    except UnidentifiedImageError:
        if data.startswith(POSTSCRIPT_MARKS):
            raise UnusableImage(POSTSCRIPT) from None
        if data.startswith(TIFF_MARKS):
            raise ValueError(
                "a damaged TIFF, or of a kind that Pillow does not know; store it with 8 or 16 bits"
            ) from None
        raise


def formats() -> tuple[str, ...]:
    """The formats that image files from elsewhere may have, as Image.open wants them: all that Pillow decodes itself.

    Without this list an EPS, whatever its name, starts Ghostscript.
    """
    Image.init()
    return _formats(tuple(Image.ID))


@functools.lru_cache(maxsize=4)
def _formats(registered: tuple[str, ...]) -> tuple[str, ...]:
    return (*COMMON, *(name for name in registered if name not in DELEGATING and name not in COMMON))


def _missing_package(data: bytes) -> str:
    """What to install for a file of the HEIF family, should that be absent; empty for all other files."""
    if data[4:8] != b"ftyp":
        return ""
    brands = data[8 : max(12, min(int.from_bytes(data[:4], "big"), 256))]
    if b"avif" in brands or b"avis" in brands:
        return AVIF_ADVICE
    return HEIF_ADVICE if any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")) else ""


@functools.cache
def heif_is_installed() -> bool:
    """Makes Pillow open HEIC, if the package for it is there -> whether it is."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def is_readable_now(reason: str, max_pixels: int) -> bool:
    """Whether the reason for rejecting an image no longer holds: a package is installed, or more pixels are allowed."""
    if allowed := re.search(r"allow them with --max-pixels (\d+)$", reason):
        return int(allowed[1]) <= max_pixels
    if reason == HEIF_ADVICE:
        return heif_is_installed()
    Image.init()
    return reason == AVIF_ADVICE and "AVIF" in Image.OPEN


def is_first_of_many(image: Image.Image) -> bool:
    """Whether a file has more pages or frames than the first. A phone's second image (MPO) does not count."""
    if image.format == "MPO":
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second page; the first may be sound
        return True


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels of `image` as its EXIF orientation wants them; as they are where that cannot be understood."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # broken EXIF meets Pillow's parser in many ways
        return pixels
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else pixels.transpose(turn)


def declared_maximum(image: Image.Image) -> int:
    """The value of white in a file's grey pixels of more than 8 bits.

    A TIFF may have fewer significant bits than stored ones (12 of 16), and say so as its largest sample value;
    one that is no power of two less one is merely the brightest pixel. Raises UnusableImage where the range is
    unknown.
    """
    tags = getattr(image, "tag_v2", {})
    stored = _first(tags.get(BITS_PER_SAMPLE), 16)
    if stored > 16:
        raise UnusableImage(
            "integer pixels below 0 or beyond 16 bits have no known range; store 8 or 16 bits"
        )
    stored -= _first(tags.get(SAMPLE_FORMAT), 1) == 2  # the sign
    most = _first(tags.get(MAX_SAMPLE_VALUE), 0)
    return most if 255 < most < 2**stored and most & (most + 1) == 0 else 2**stored - 1


def has_few_bits(image: Image.Image) -> bool:
    """Whether a 16-bit image looks as if fewer bits were meant; Pillow has the upper 8 of colours."""
    if image.mode == "I;16":
        return bool(np.asarray(image).max() < 4096)
    deep = _first(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE), 8) == 16
    return deep and bool(np.asarray(image).max() < 16)


def _first(value: object, default: int) -> int:
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def to_16_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits (modes I;16, I;16B, I) -> mode I;16 with white at 65535, other modes as they are.

    Raises UnusableImage for pixels whose range is unknown: floats, integers beyond 16 bits; and for colour of
    which only the darkest part of the range is used, which Pillow would cut down to a few levels.
    """
    if image.mode == "F":
        raise UnusableImage("floating-point pixels have no known range; store 8 or 16 bits")
    if not image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        if _first(tags.get(BITS_PER_SAMPLE), 8) == 16 and declared_maximum(image) < 65535:
            raise UnusableImage("colour of fewer than 16 significant bits in 16; scale it, or store 8 bits")
        return image
    values, most = np.asarray(image), declared_maximum(image)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImage(
            "integer pixels below 0 or beyond 16 bits have no known range; store 8 or 16 bits"
        )
    most = most if values.max() <= most else 65535
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns 8 bits round, not 16
        values = most - values
    if most < 65535:
        values = (values * (65535 / most)).round()
    return Image.fromarray(values.astype(np.uint16))


def opaque_16_bits(image: Image.Image) -> Image.Image | None:
    """The alpha, mode L, of grey with more than 8 bits of which one value is transparent (a PNG's tRNS chunk); None for
    all other images, which Pillow converts itself."""
    transparent = image.info.get("transparency")
    if not image.mode.startswith("I") or not isinstance(transparent, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8))


def without_damage(data: bytes) -> Iterator[bytes]:
    """A PNG, JPEG or TIFF that Pillow refuses, with less and less of what its pixels do not depend on.

    First without text, times and thumbnails, then without colour profile and orientation too. A JPEG gets the
    end mark that it lacks, provided that its pixels are all there.
    """
    for keep_profile in (True, False):
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            yield _plain_png(data, PNG_CHUNKS if keep_profile else {b"tRNS"})
        elif data.startswith(b"\xff\xd8"):
            yield _closed_jpeg(_plain_jpeg(data, JPEG_APPS if keep_profile else {0xEE: JPEG_APPS[0xEE]}))
        elif data.startswith(TIFF_MARKS[:2]):
            yield _plain_tiff(data, TIFF_TAGS | ({ORIENTATION, ICC_PROFILE} if keep_profile else set()))


def _plain_tiff(data: bytes, tags: set[int]) -> bytes:
    """With those tags alone, of its first page, whose values lie within the file."""
    order = "<" if data[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        rows = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        kept = [row for row in rows if _is_kept(row, order, tags, len(data))]
    except struct.error:
        return data
    table = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + table + data[start + len(table) :]


def _is_kept(row: bytes, order: str, tags: set[int], end: int) -> bool:
    tag, kind, count, place = struct.unpack(order + "HHII", row)
    size = count * TIFF_BYTES.get(kind, 1)
    return tag in tags and (size <= 4 or place + size <= end)


def _plain_png(data: bytes, chunks: set[bytes]) -> bytes:
    """With those ancillary chunks alone, if they are whole."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        key, end = data[at + 4 : at + 8], at + 12 + length
        critical = not key[0] & 0x20
        if critical or (key in chunks and _has_its_crc(data[at + 4 : end])):
            kept.append(data[at:end])
        at = end
        if key == b"IEND":
            break
    return b"".join(kept)


def _has_its_crc(chunk: bytes) -> bool:
    return len(chunk) >= 8 and zlib.crc32(chunk[:-4]).to_bytes(4, "big") == chunk[-4:]


def _plain_jpeg(data: bytes, apps: dict[int, bytes]) -> bytes:
    """With those application segments alone, and no comments, as far as segments can be followed."""
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and data[at + 1] not in (0xDA, 0xFF):
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or (marker in apps and segment[4:].startswith(apps[marker])):
            kept.append(segment)
        at += 2 + length
    return b"".join([*kept, data[at:]])


def _closed_jpeg(data: bytes) -> bytes:
    closed = data + b"\xff\xd9"
    try:
        spaces = {"CMYK": "CMYK", "YCCK": "CMYK", "Gray": "GRAY"}
        _, _, space, _ = simplejpeg.decode_jpeg_header(closed)
        simplejpeg.decode_jpeg(closed, spaces.get(space, "RGB"), strict=True)
    except ValueError:
        return data
    return closed
