"""Damaged metadata costs no image; unusable files are rejected with a reason."""

import contextlib
import functools
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_bytes import BRICK, SRGB, chunks, middle, noisy, plain, refusal, sample, saved, warnings_about
from PIL import EpsImagePlugin, Image, PngImagePlugin

from ggcn.applications import user_images
from ggcn.cli import make_shards
from ggcn.errors import UserError
from ggcn.shards import build, build_spec, color, image_file, sources, verify
from ggcn.shards.crop import Options


@functools.cache
def with_metadata(kind: str) -> bytes:
    """An image with all the metadata that its kind of file can have."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    options: dict[str, Any] = {"exif": exif, "icc_profile": SRGB}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("a", "b" * 50)
        info.add_text("z", "c" * 500, zip=True)
        info.add_itxt("XML:com.adobe.xmp", "<x/>")
        for key, body in (
            (b"tIME", bytes(7)),
            (b"pHYs", bytes(9)),
            (b"gAMA", bytes(4)),
            (b"cHRM", bytes(32)),
        ):
            info.add(key, body)
        options["pnginfo"] = info
    if kind == "JPEG":
        options |= {"comment": b"hi", "xmp": b"<x/>"}
    return saved(noisy(), kind, **options, **({"lossless": True} if kind == "WEBP" else {}))


def metadata(kind: str, data: bytes) -> list[range]:
    """Where the bodies of the metadata lie."""
    result, at = [], 33 if kind == "PNG" else 2
    if kind == "WEBP":
        return [
            range(data.index(b"ICCP") + 8, data.index(b"VP8L")),
            range(data.index(b"EXIF") + 8, len(data)),
        ]
    while kind == "PNG" and data[at + 4 : at + 8] != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        result.append(range(at + 8, at + 8 + length))
        at += 12 + length
    while kind == "JPEG" and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE:
            result.append(range(at + 4, at + 2 + length))
        at += 2 + length
    return [part for part in result if part]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_metadata_does_not_reject_an_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    complete = with_metadata(kind)
    for _ in range(150):
        data = bytearray(complete)
        part = rng.choice(np.array(metadata(kind, complete), dtype=object))
        for place in rng.choice(part, rng.choice([1, 4, 30])):
            data[place] = rng.choice([0, 255, rng.integers(256)])
        if kind == "PNG" and rng.random() < 0.7:
            end = part.stop if isinstance(part, range) else int(part[-1]) + 1
            start = (part.start if isinstance(part, range) else int(part[0])) - 4
            data[end : end + 4] = zlib.crc32(bytes(data[start:end])).to_bytes(4, "big")
        assert sample(bytes(data)).size == (32, 32)


def test_tiff_text_outside_the_file_does_not_reject_an_image() -> None:
    data = bytearray(saved(noisy(), "TIFF", description="x" * 30))
    at = data.index(struct.pack("<HHI", 270, 2, 31)) + 8
    data[at : at + 4] = struct.pack("<I", 0xFFFFFF)
    assert sample(bytes(data)).tobytes() == sample(saved(noisy(), "TIFF")).tobytes()


def test_megabytes_of_text_do_not_reject_an_image() -> None:
    text = (b"zTXt", b"parameters\0\0" + zlib.compress(b"a photograph " * 250_000))
    assert sample(chunks(noisy(), text)).tobytes() == sample(saved(noisy())).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_without_its_end_marker_is_accepted(mode: str, lost: int) -> None:
    data = saved(noisy().convert(mode), "JPEG")
    assert sample(data[:-lost]).tobytes() == sample(data).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "progressive"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_an_image_whose_pixels_are_cut_off_is_refused(kind: str, kept: float) -> None:
    more = {"progressive": True} if kind == "progressive" else {}
    data = saved(noisy(200, 200), "JPEG" if more else kind, **more)
    assert "truncated" in refusal(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pages_or_frames_the_first_is_taken_with_a_warning(kind: str) -> None:
    frames = [plain(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(middle(data), (255, 0, 0))).max() <= 1
    assert warnings_about(data) == [image_file.FIRST_OF_MANY]
    assert warnings_about(saved(frames[0], kind)) == []


def test_a_phones_second_image_is_ignored_without_a_warning() -> None:
    data = saved(plain((255, 0, 0)), "MPO", save_all=True, append_images=[plain((0, 0, 255))])
    assert middle(data)[0] > 250
    assert warnings_about(data) == []


def test_very_large_images_can_be_allowed() -> None:
    data = saved(plain(7, "L", (1000, 600)))
    options = Options(32, max_pixels=599_999)
    assert refusal(data, options) == (
        "1000 x 600 pixels are too many; if they are meant, allow them with --max-pixels 600000"
    )
    assert sample(data, Options(32, max_pixels=600_000)).size == (32, 32)


def test_more_pixels_than_pillows_limit_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert sample(saved(noisy())).size == (32, 32)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    ("brand", "advice"), [(b"heic", "pillow-heif"), (b"mif1", "pillow-heif"), (b"avif", "11.3")]
)
def test_the_package_to_install_is_named(brand: bytes, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "is_readable_now", lambda reason, most: False)
    data = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"miaf" + brand + bytes(100)
    assert advice in refusal(data)


def test_a_build_counts_warnings_and_lists_rejections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        saved_as = saved(noisy(), icc_profile=b"broken") if index else saved(noisy())
        (folder / f"{index}.png").write_bytes(saved_as)
    (folder / "pages.tif").write_bytes(saved(noisy(), "TIFF", save_all=True, append_images=[noisy()]))
    (folder / "large.png").write_bytes(saved(plain(7, "L", (300, 300))))
    command = [str(folder), str(tmp_path / "out"), "--size", "8", "--workers", "1"]
    make_shards.main([*command, "--max-pixels", "80000"])
    printed = capsys.readouterr().out
    assert f"2 images: {color.BROKEN}" in printed
    assert f"1 images: {image_file.FIRST_OF_MANY}" in printed
    assert "--max-pixels 90000" in printed
    options = json.loads((tmp_path / "out" / build_spec.BUILD_SPEC).read_text())
    assert options["color_space"] == color.SPACE
    assert sources.find(str(folder)).skipped == 0


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def iptc(inside: bytes) -> bytes:
    """An IPTC file, uncompressed, whose pixels are a file of another kind."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value

    size = field(3, 20, b"\0\x28") + field(3, 30, b"\0\x28")
    return field(3, 60, b"\1\0") + size + field(3, 120, b"\5") + field(8, 10, inside)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once a program named as Ghostscript has been started."""
    mark, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with contextlib.suppress(Exception):
        Image.open(io.BytesIO(EPS)).load()
    assert mark.exists()  # so does Pillow, left to itself
    mark.unlink()
    return mark


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (EPS, "PostScript (EPS) is a program, which is not run; convert it to PNG"),
        (iptc(EPS), "not an image, or of an unknown kind"),
    ],
)
def test_an_image_file_starts_no_program(data: bytes, why: str, tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(data)
    (folder / "b.png").write_bytes(saved(noisy()))
    result = sources.find(str(folder))
    for crops in ("center", "grid"):
        options = Options(16, crop=crops, shard_samples=8)
        built = build.build(result, {tmp_path / crops: options}, 1)
        assert built is not None
        assert built[0].rejects == [("a.png", why)]
    with pytest.raises(UserError, match="is not an image"):
        user_images.mask(str(folder / "a.png"), 16)
    assert verify.undecodable(data, 40, "png").startswith("cannot be decoded")
    assert not ran.exists()


def test_every_format_that_pillow_decodes_itself_is_accepted() -> None:
    for kind in ("BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP"):
        assert sample(saved(plain(BRICK, "RGB"), kind)).size == (32, 32), kind
