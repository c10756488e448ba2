"""Colours, depths and odd files: sound pixels become samples as a viewer shows them, the rest is refused clearly."""

import contextlib
import functools
import io
import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from ggcn.applications import user_images
from ggcn.cli import make_shards
from ggcn.errors import UserError
from ggcn.shards import build, build_spec, color, crop, image_file, sources, verify
from ggcn.shards.crop import Options, samples_of

RED = (200, 60, 40)
ADOBE = color.matrix_profile(color.ADOBE_PRIMARIES, color.D65, 563 / 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Pillow warns of the odd metadata that is the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


def plain(colour: Any = RED, mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, size, colour)


def noise(height: int = 40, width: int = 48) -> Image.Image:
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


# ------------------------------------------------------------------------------------------- colours


def seen(colour: tuple[int, int, int], profile: bytes) -> Image.Image:
    """An image of the profile's space that shows a colour of sRGB; lcms is the judge."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(plain(colour), ImageCms.createProfile("sRGB"), target)
    assert converted is not None
    converted.info = {}  # without the profile, which would be saved with it
    return converted


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of one colour in another mode, its colour unchanged."""
    return image.quantize(2) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("JPEG", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PNG", "RGBA"), ("PNG", "P")],
)
def test_a_wide_gamut_image_shows_its_colours(kind: str, mode: str) -> None:
    colour = (60, 120, 200)
    stored = in_mode(seen(colour, ADOBE), mode)
    extra = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    assert np.abs(np.subtract(middle(saved(stored, kind, icc_profile=ADOBE, **extra)), colour)).max() <= 3
    assert np.abs(np.subtract(middle(saved(stored, kind, **extra)), colour)).max() > 15


def test_a_large_jpeg_that_is_decoded_small_shows_its_colours() -> None:
    stored = seen(RED, ADOBE).resize((900, 600))
    assert np.abs(np.subtract(middle(saved(stored, "JPEG", icc_profile=ADOBE)), RED)).max() <= 3


def test_an_srgb_profile_changes_no_bit() -> None:
    with_profile, without = (sample(saved(noise(), icc_profile=icc)) for icc in (SRGB, None))
    assert with_profile.tobytes() == without.tobytes()


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey with an exponent."""
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    icc = bytearray(color._icc([(b"wtpt", color._xyz_tag(color.D50_XYZ)), (b"kTRC", curve)]))
    icc[16:20] = b"GRAY"
    return bytes(icc)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 48), 55 * 257, dtype=np.uint16))
    else:
        image = plain(55, "L").convert(mode)
    assert middle(saved(image)) == (55, 55, 55)
    for pixel in middle(saved(image, icc_profile=grey_profile(1.0))):  # 55 of 255 of the light is 128 in sRGB
        assert abs(pixel - 128) <= 1


def cmyk_profile() -> bytes:
    """An ICC profile of a press whose cyan is a grass green: inks mix linearly in Lab, black is black."""
    inks = np.array([[-50, -60, 50], [-50, 70, 0], [-10, 0, 90], [-100, 0, 0]])
    table = bytearray()
    for amounts in np.ndindex(2, 2, 2, 2):
        light, a, b = np.clip([100, 0, 0] + np.array(amounts) @ inks, [0, -128, -128], [100, 127, 127])
        table += bytes([round(light * 2.55), round(a + 128), round(b + 128)])
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    head += struct.pack(">9i", *(65536 * (at in (0, 4, 8)) for at in range(9)))
    icc = bytearray(
        color._icc(
            [
                (b"wtpt", color._xyz_tag(color.D50_XYZ)),
                (b"A2B0", head + straight * 4 + bytes(table) + straight * 3),
            ]
        )
    )
    icc[12:24] = b"prtrCMYKLab "
    return bytes(icc)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_applied(kind: str) -> None:
    cyan = plain((255, 0, 0, 0), "CMYK")
    red, green, blue = middle(saved(cyan, kind, icc_profile=cmyk_profile()))
    assert green > 100 > max(red, blue)  # this press prints green
    red, green, blue = middle(saved(cyan, kind))
    assert red < 5
    assert green > 250
    assert blue > 250
    assert middle(saved(plain((0, 0, 0, 0), "CMYK"), kind, icc_profile=cmyk_profile())) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "profile", "warning"),
    [
        (noise(), b"no profile at all", color.BROKEN),
        (noise().convert("L"), ADOBE, color.OTHER_SPACE),
        (noise(), grey_profile(1.0), color.OTHER_SPACE),
        (noise().convert("1"), ADOBE, color.OTHER_SPACE),
    ],
)
def test_a_profile_that_cannot_apply_is_ignored_and_named(
    image: Image.Image, profile: bytes, warning: str
) -> None:
    data = saved(image, icc_profile=profile)
    assert sample(data).tobytes() == sample(saved(image)).tobytes()
    assert warnings_about(data) == [warning]


def test_cameras_mark_of_adobe_rgb_is_understood() -> None:
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[0xA001] = 0xFFFF
    details[0xA005] = {1: "R03"}
    data = saved(seen(RED, ADOBE), "JPEG", quality=100, exif=exif)
    assert np.abs(np.subtract(middle(data), RED)).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_a_pngs_gamma_is_applied_unless_it_is_srgb(mode: str) -> None:
    image = in_mode(plain((55, 55, 55)), mode)
    linear = (b"gAMA", struct.pack(">I", 100_000))
    assert np.abs(np.subtract(middle(chunks(image, linear)), 128)).max() <= 1
    for unchanged in (
        [linear, (b"sRGB", b"\0")],
        [(b"gAMA", struct.pack(">I", 45455))],
        [(b"gAMA", bytes(4))],
    ):
        assert middle(chunks(image, *unchanged)) == (55, 55, 55)


# ------------------------------------------------------------------------------------------- depths


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A grey TIFF of 16 bits with further tags."""
    image = Image.fromarray(values)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[{"largest": 281}[name]] = value
        directory.tagtype[281] = 3
    return saved(image, "TIFF", tiffinfo=directory)


def test_the_whole_range_of_deep_grey_is_kept() -> None:
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


def test_a_tiff_in_which_white_is_zero_is_turned_round() -> None:
    for values in (np.full((40, 48), 40, np.uint8), np.full((40, 48), 40 * 257, np.uint16)):
        assert middle(white_is_zero(tiff(values))) == (215, 215, 215)


@pytest.mark.parametrize("most", [100, 255, 1023, 4095, 65535])
def test_netpbm_files_of_any_depth_are_scaled(most: int) -> None:
    value = struct.pack(">H" if most > 255 else "B", most // 2)
    for kind, channels in ((b"P5", 1), (b"P6", 3)):
        data = kind + b" 48 40 %d\n" % most + value * (48 * 40 * channels)
        assert np.abs(np.subtract(middle(data), 127.5)).max() <= 2


def test_deep_colour_keeps_its_range() -> None:
    row = b"\0" + struct.pack(">3H", *(257 * value for value in RED)) * 48
    body = chunks(plain())
    start, end = body.index(b"IDAT") - 4, body.index(b"IEND") - 4
    head = struct.pack(">IIBBBBB", 48, 40, 16, 2, 0, 0, 0)
    pixels = zlib.compress(row * 40)

    def chunk(key: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + key + data + struct.pack(">I", zlib.crc32(key + data))

    assert start < end
    assert middle(body[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")) == RED


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((40, 48), 0.5, np.float32), "floating-point pixels have no known range"),
        (np.full((40, 48), 70_000, np.int32), "beyond 16 bits"),
        (np.full((40, 48), 7, np.int32), "beyond 16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values: np.ndarray, words: str) -> None:
    assert words in refusal(saved(Image.fromarray(values), "TIFF"))


# ------------------------------------------------------------------------------------------- odd files


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
    return saved(noise(), kind, **options, **({"lossless": True} if kind == "WEBP" else {}))


def metadata(kind: str, data: bytes) -> list[range]:
    """Where the bodies of the metadata lie."""
    found, at = [], 33 if kind == "PNG" else 2
    if kind == "WEBP":
        return [
            range(data.index(b"ICCP") + 8, data.index(b"VP8L")),
            range(data.index(b"EXIF") + 8, len(data)),
        ]
    while kind == "PNG" and data[at + 4 : at + 8] != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(range(at + 8, at + 8 + length))
        at += 12 + length
    while kind == "JPEG" and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE:
            found.append(range(at + 4, at + 2 + length))
        at += 2 + length
    return [part for part in found if part]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_damage_to_metadata_costs_an_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = with_metadata(kind)
    for _ in range(150):
        data = bytearray(whole)
        part = rng.choice(np.array(metadata(kind, whole), dtype=object))
        for place in rng.choice(part, rng.choice([1, 4, 30])):
            data[place] = rng.choice([0, 255, rng.integers(256)])
        if kind == "PNG" and rng.random() < 0.7:
            end = part.stop if isinstance(part, range) else int(part[-1]) + 1
            start = (part.start if isinstance(part, range) else int(part[0])) - 4
            data[end : end + 4] = zlib.crc32(bytes(data[start:end])).to_bytes(4, "big")
        assert sample(bytes(data)).size == (32, 32)


def test_a_tiffs_text_that_lies_outside_the_file_costs_nothing() -> None:
    data = bytearray(saved(noise(), "TIFF", description="x" * 30))
    at = data.index(struct.pack("<HHI", 270, 2, 31)) + 8
    data[at : at + 4] = struct.pack("<I", 0xFFFFFF)
    assert sample(bytes(data)).tobytes() == sample(saved(noise(), "TIFF")).tobytes()


def test_megabytes_of_text_cost_nothing() -> None:
    text = (b"zTXt", b"parameters\0\0" + zlib.compress(b"a photograph " * 250_000))
    assert sample(chunks(noise(), text)).tobytes() == sample(saved(noise())).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_without_its_end_mark_is_whole(mode: str, lost: int) -> None:
    data = saved(noise().convert(mode), "JPEG")
    assert sample(data[:-lost]).tobytes() == sample(data).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "progressive"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_an_image_whose_pixels_are_cut_off_is_refused(kind: str, kept: float) -> None:
    more = {"progressive": True} if kind == "progressive" else {}
    data = saved(noise(200, 200), "JPEG" if more else kind, **more)
    assert "truncated" in refusal(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pages_or_frames_the_first_is_taken_and_that_is_said(kind: str) -> None:
    frames = [plain(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(middle(data), (255, 0, 0))).max() <= 1
    assert warnings_about(data) == [image_file.FIRST_OF_MANY]
    assert warnings_about(saved(frames[0], kind)) == []


def test_a_phones_second_picture_is_passed_over_in_silence() -> None:
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


def test_more_pixels_than_pillow_takes_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert sample(saved(noise())).size == (32, 32)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    ("brand", "advice"), [(b"heic", "pillow-heif"), (b"mif1", "pillow-heif"), (b"avif", "11.3")]
)
def test_what_to_install_is_said(brand: bytes, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "is_readable_now", lambda reason, most: False)
    data = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"miaf" + brand + bytes(100)
    assert advice in refusal(data)


def test_a_build_counts_warnings_and_lists_rejections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        saved_as = saved(noise(), icc_profile=b"broken") if index else saved(noise())
        (folder / f"{index}.png").write_bytes(saved_as)
    (folder / "pages.tif").write_bytes(saved(noise(), "TIFF", save_all=True, append_images=[noise()]))
    (folder / "large.png").write_bytes(saved(plain(7, "L", (300, 300))))
    command = [str(folder), str(tmp_path / "out"), "--size", "8", "--workers", "1"]
    make_shards.main([*command, "--max-pixels", "80000"])
    printed = capsys.readouterr().out
    assert f"2 images: {color.BROKEN}" in printed
    assert f"1 images: {image_file.FIRST_OF_MANY}" in printed
    assert "--max-pixels 90000" in printed
    options = json.loads((tmp_path / "out" / build_spec.BUILD_SPEC).read_text())
    assert options["color_space"] == color.SPACE
    assert sources.find(str(folder)).others == 0


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_the_darks_of_linear_grey_are_exact(mode: str) -> None:
    levels = 256 if mode == "L" else 65536
    values = np.linspace(0, (levels - 1) / 16, 48).astype(np.uint8 if mode == "L" else np.uint16)
    image = Image.fromarray(np.tile(values, (40, 1)))
    image.info["icc_profile"] = grey_profile(1.0)
    light = values / (levels - 1)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    shown, said = crop.to_rgb(image)
    assert said in ([], [image_file.FEW_BITS])
    assert np.abs(np.asarray(shown)[0] - expected[:, None]).max() <= 1


def png_16_bits(pixels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, pixels [height, width, channels], with those chunks before its pixels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
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
    (folder / "b.png").write_bytes(saved(noise()))
    found = sources.find(str(folder))
    for crops in ("center", "grid"):
        options = Options(16, crop=crops, shard_samples=8)
        built = build.build(found, {tmp_path / crops: options}, 1)
        assert built is not None
        assert built[0].rejects == [("a.png", why)]
    with pytest.raises(UserError, match="is no picture"):
        user_images.mask(str(folder / "a.png"), 16)
    assert verify.undecodable(data, 40, "png").startswith("cannot be decoded")
    assert not ran.exists()


def test_every_format_that_pillow_decodes_itself_is_taken() -> None:
    for kind in ("BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP"):
        assert sample(saved(plain(RED, "RGB"), kind)).size == (32, 32), kind
