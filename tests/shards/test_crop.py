"""Samples have the right pixels: orientation, crops, grids, modes and formats."""

import io
from pathlib import Path

import numpy as np
import pytest
from builds import (
    BLUE,
    GREEN,
    GREY,
    RED,
    WHITE,
    distance,
    draw,
    make,
    near,
    noise,
    only,
    samples,
    stored,
    stripes,
)
from PIL import Image

from ggcn.data import manifest_file
from ggcn.shards import assembly, crop


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_every_exif_orientation_is_applied(tmp_path: Path, ending: str) -> None:
    upright = Image.new("RGB", (64, 64))
    for colour, corner in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (32, 0), (0, 32), (32, 32)), strict=True):
        upright.paste(colour, (*corner, corner[0] + 32, corner[1] + 32))
    turn = Image.Transpose
    turns = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    turns += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    for orientation, how in enumerate(turns, 1):
        stored_as = upright if how is None else upright.transpose(how)
        exif = Image.Exif()
        exif[0x0112] = orientation
        draw(tmp_path / "in" / f"{orientation}.{ending}", stored_as, exif=exif)
    make(tmp_path / "in", tmp_path / "out", "--size", 32)
    result = samples(tmp_path / "out")
    assert len(result) == 8
    for image in result.values():
        assert near(image, 8, 8, RED)
        assert near(image, 24, 8, GREEN)
        assert near(image, 8, 24, BLUE)
        assert near(image, 24, 24, WHITE)
        assert not image.getexif()


def test_the_crop_is_measured_on_the_upright_image(tmp_path: Path) -> None:
    lying = stripes(1200, 300, RED, GREEN, BLUE, WHITE)  # upright: white, blue, green, red from the top
    exif = Image.Exif()
    exif[0x0112] = 8
    draw(tmp_path / "in" / "a.jpg", lying, exif=exif, quality=95)
    make(tmp_path / "in", tmp_path / "out", "--size", 30, "--crop", "top")
    ((_, box, _),) = stored(tmp_path / "out")
    assert box == [0, 0, 300, 300]
    assert near(only(tmp_path / "out"), 15, 15, WHITE)


def test_center_takes_the_middle_and_top_the_top(tmp_path: Path) -> None:
    tall = stripes(90, 30, RED, GREEN, BLUE).transpose(Image.Transpose.ROTATE_270)  # red, green, blue down
    draw(tmp_path / "in" / "tall.png", tall)
    draw(tmp_path / "in" / "wide.png", stripes(90, 30, RED, GREEN, BLUE))
    make(tmp_path / "in", tmp_path / "center", "--size", 30)
    make(tmp_path / "in", tmp_path / "top", "--size", 30, "--crop", "top")
    colours = {
        (kind, name): image.getcolors()
        for kind in ("center", "top")
        for name, image in samples(tmp_path / kind).items()
    }
    assert colours["center", "tall.png"] == colours["center", "wide.png"] == [(900, GREEN)]
    assert colours["top", "tall.png"] == [(900, RED)]
    assert colours["top", "wide.png"] == [(900, GREEN)]


def test_a_grid_covers_a_scene_with_squares_at_every_scale(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(3, 103, 70))
    draw(tmp_path / "in" / "small.png", noise(4, 103, 15))
    make(tmp_path / "in", tmp_path / "out", "--size", 16, "--crops", "grid")
    result = {tuple(box): Image.open(io.BytesIO(data)) for _, box, data in stored(tmp_path / "out")}
    native = {(3 + 16 * x, 3 + 16 * y, 19 + 16 * x, 19 + 16 * y) for x in range(6) for y in range(4)}
    half = {(3 + 32 * x, 3 + 32 * y, 35 + 32 * x, 35 + 32 * y) for x in range(3) for y in range(2)}
    assert set(result) == native | half
    for box in native:  # not resampled: the very pixels
        assert result[box].tobytes() == noise(3, 103, 70).crop(box).tobytes()
    for box in half:
        smooth = noise(3, 103, 70).crop(box).resize((16, 16), Image.Resampling.BOX)
        inner = (2, 2, 14, 14)
        assert (
            distance(result[box].crop(inner), smooth.crop(inner)) < 25
        )  # noise of 74: the same place, another filter
    assert manifest_file.load(tmp_path / "out").rejected == 1
    assert "too small" in (tmp_path / "out" / assembly.REJECTED).read_text()
    make(tmp_path / "in", tmp_path / "coarse", "--size", 16, "--crop", "grid", "--scales", 2)
    assert {tuple(box) for _, box, _ in stored(tmp_path / "coarse")} == half


def test_a_grid_keeps_an_image_in_one_shard_and_mixes_its_squares(tmp_path: Path) -> None:
    for seed in range(6):
        draw(tmp_path / "in" / f"{seed}.png", noise(seed, 64, 64))
    make(tmp_path / "in", tmp_path / "out", "--size", 16, "--crop", "grid", "--shard-samples", 50)
    assert manifest_file.load(tmp_path / "out").counts.tolist() == [
        40,
        40,
        40,
    ]  # two images of 16 + 4 squares
    names = [name for name, _, _ in stored(tmp_path / "out")]
    first = names[:40]
    assert len(set(first)) == 2
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)
    assert set(first).isdisjoint(names[40:])


def test_a_large_jpeg_decoded_small_is_the_same_image(tmp_path: Path) -> None:
    coarse = noise(5, 24, 16).resize((1201, 801), Image.Resampling.BICUBIC)
    draw(tmp_path / "in" / "a.jpg", coarse, quality=95)
    make(tmp_path / "in", tmp_path / "out", "--size", 64)
    whole = Image.open(tmp_path / "in" / "a.jpg")
    decoded, scale, _ = crop.decode((tmp_path / "in" / "a.jpg").read_bytes(), crop.Options(64), {})
    assert (decoded.size, scale) == ((301, 201), 0.25)
    box = (200, 0, 1001, 801)
    exact = whole.resize((64, 64), Image.Resampling.LANCZOS, box=box)
    assert distance(only(tmp_path / "out"), exact) < 1


def odd_images() -> dict[str, tuple[Image.Image, tuple[int, int, int]]]:
    """File name -> an image of one colour in an unusual mode, the colour it must have as RGB."""
    half_red = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    clear = palette.copy()
    clear.info["transparency"] = 1
    deep = Image.fromarray(np.full((20, 20), 128 * 257, dtype=np.uint16))
    return {
        "half.png": (half_red, (255, 127, 127)),
        "clear.png": (Image.new("LA", (20, 20), (0, 0)), WHITE),
        "palette.png": (palette, BLUE),
        "palette_clear.png": (clear, WHITE),
        "deep.png": (deep, GREY),
        "deep_white.png": (Image.fromarray(np.full((20, 20), 65535, dtype=np.uint16)), WHITE),
        "deep.tif": (deep, GREY),
        "deep.pgm": (Image.new("I", (20, 20), 128 * 257), GREY),
        "grey.jpg": (Image.new("L", (20, 20), 128), GREY),
        "bit.png": (Image.new("1", (20, 20), 1), WHITE),
        "cmyk.jpg": (Image.new("CMYK", (20, 20), (255, 255, 0, 0)), BLUE),
        "cmyk.tif": (Image.new("CMYK", (20, 20), (255, 255, 0, 0)), BLUE),
    }


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    for name, (image, _) in odd_images().items():
        draw(tmp_path / "in" / name, image)
    make(tmp_path / "in", tmp_path / "out", "--size", 10)
    result = samples(tmp_path / "out")
    assert set(result) == set(odd_images())
    for name, (_, colour) in odd_images().items():
        assert result[name].mode == "RGB"
        assert near(result[name], 5, 5, colour), name


def test_formats(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(6, 32, 32), icc_profile=b"x" * 500)
    pixels = {}
    for name, extra in [("png", []), ("webp", []), ("jpg", ["--quality", 50])]:
        make(tmp_path / "in", tmp_path / name, "--size", 32, "--format", name, *extra)
        image = only(tmp_path / name)
        assert image.format == {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[name]
        assert "icc_profile" not in image.info
        pixels[name] = image.convert("RGB").tobytes()
    assert pixels["png"] == pixels["webp"] == noise(6, 32, 32).tobytes()
    assert pixels["jpg"] != pixels["png"]
