"""Images of other bit depths keep their range."""

import struct
import zlib

import numpy as np
import pytest
from image_bytes import BRICK, chunks, grey_profile, middle, plain, refusal, saved, warnings_about
from PIL import Image, TiffImagePlugin

from ggcn.shards import crop, image_file


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A grey TIFF of 16 bits with further tags."""
    image = Image.fromarray(values)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[{"largest": 281}[name]] = value
        directory.tagtype[281] = 3
    return saved(image, "TIFF", tiffinfo=directory)


def test_the_full_range_of_16_bit_grey_is_kept() -> None:
    for value, grey in ((0, 0), (128 * 257, 128), (65535, 255)):
        values = np.full((40, 48), value, dtype=np.uint16)
        assert middle(tiff(values)) == middle(saved(Image.fromarray(values))) == (grey,) * 3
    twelve = np.full((40, 48), 2056, dtype=np.uint16)
    assert middle(tiff(twelve, largest=4095)) == (128, 128, 128)
    assert middle(tiff(twelve)) == (8, 8, 8)
    assert warnings_about(tiff(twelve)) == [image_file.FEW_BITS]
    assert middle(tiff(np.full((40, 48), 128 * 257, dtype=np.uint16), largest=33_000)) == (128, 128, 128)


def test_twelve_bits_without_gaps_are_scaled() -> None:
    """Two pixels in three bytes."""
    fields = [
        (256, 48),
        (257, 40),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 110),
        (277, 1),
        (278, 40),
        (279, 72 * 40),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + bytes(4)
    data = head.ljust(110, b"\0") + bytes([0x80, 0x88, 0x08]) * (24 * 40)  # 0x808 is 2056 of 4095
    assert middle(data) == (128, 128, 128)


def white_is_zero(data: bytes) -> bytes:
    """The same TIFF with its scale turned round."""
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    return data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))


def test_a_tiff_in_which_white_is_zero_is_inverted() -> None:
    for values in (np.full((40, 48), 40, np.uint8), np.full((40, 48), 40 * 257, np.uint16)):
        assert middle(white_is_zero(tiff(values))) == (215, 215, 215)


@pytest.mark.parametrize("most", [100, 255, 1023, 4095, 65535])
def test_netpbm_files_of_any_depth_are_scaled(most: int) -> None:
    value = struct.pack(">H" if most > 255 else "B", most // 2)
    for kind, channels in ((b"P5", 1), (b"P6", 3)):
        data = kind + b" 48 40 %d\n" % most + value * (48 * 40 * channels)
        assert np.abs(np.subtract(middle(data), 127.5)).max() <= 2


def test_16_bit_color_keeps_its_range() -> None:
    row = b"\0" + struct.pack(">3H", *(257 * value for value in BRICK)) * 48
    body = chunks(plain())
    start, end = body.index(b"IDAT") - 4, body.index(b"IEND") - 4
    head = struct.pack(">IIBBBBB", 48, 40, 16, 2, 0, 0, 0)
    pixels = zlib.compress(row * 40)

    def chunk(key: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + key + data + struct.pack(">I", zlib.crc32(key + data))

    assert start < end
    assert middle(body[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")) == BRICK


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((40, 48), 0.5, np.float32), "floating-point pixels have no known range"),
        (np.full((40, 48), 70_000, np.int32), "beyond 16 bits"),
        (np.full((40, 48), 7, np.int32), "beyond 16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values: np.ndarray, message: str) -> None:
    assert message in refusal(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_dark_values_of_linear_grey_are_exact(mode: str) -> None:
    levels = 256 if mode == "L" else 65536
    values = np.linspace(0, (levels - 1) / 16, 48).astype(np.uint8 if mode == "L" else np.uint16)
    image = Image.fromarray(np.tile(values, (40, 1)))
    image.info["icc_profile"] = grey_profile(1.0)
    light = values / (levels - 1)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    shown, warnings = crop.to_rgb(image)
    assert warnings in ([], [image_file.FEW_BITS])
    assert np.abs(np.asarray(shown)[0] - expected[:, None]).max() <= 1


def png_16_bits(pixels: np.ndarray, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, pixels [height, width, channels], with those chunks before its pixels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n"
    for key, data in body:
        file += struct.pack(">I", len(data)) + key + data + struct.pack(">I", zlib.crc32(key + data))
    return file


def test_a_grey_profile_is_applied_to_16_bits_with_alpha() -> None:
    pixels = np.full((40, 48, 2), (55 * 257, 65535))
    icc = (b"iCCP", b"grey\0\0" + zlib.compress(grey_profile(1.0)))
    data = png_16_bits(pixels, 4, icc)
    assert warnings_about(data) == []
    assert all(abs(pixel - 128) <= 1 for pixel in middle(data))
    pixels[..., 1] = 0
    assert middle(png_16_bits(pixels, 4, icc)) == (255, 255, 255)


def test_a_transparent_value_of_16_bit_grey_shows_white() -> None:
    pixels = np.full((40, 48, 1), 55 * 257)
    assert middle(png_16_bits(pixels, 0, (b"tRNS", struct.pack(">H", 55 * 257)))) == (255, 255, 255)
    assert middle(png_16_bits(pixels, 0, (b"tRNS", struct.pack(">H", 55 * 257 + 1)))) == (55, 55, 55)
