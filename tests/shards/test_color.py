"""Color profiles are applied, and broken ones ignored with a warning."""

import io
import struct

import numpy as np
import pytest
from image_bytes import (
    ADOBE,
    BRICK,
    SRGB,
    chunks,
    grey_profile,
    middle,
    noisy,
    plain,
    sample,
    saved,
    warnings_about,
)
from PIL import Image, ImageCms

from ggcn.shards import color


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
def test_a_wide_gamut_image_keeps_its_colors(kind: str, mode: str) -> None:
    colour = (60, 120, 200)
    stored = in_mode(seen(colour, ADOBE), mode)
    extra = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    assert np.abs(np.subtract(middle(saved(stored, kind, icc_profile=ADOBE, **extra)), colour)).max() <= 3
    assert np.abs(np.subtract(middle(saved(stored, kind, **extra)), colour)).max() > 15


def test_a_large_jpeg_that_is_decoded_small_keeps_its_colors() -> None:
    stored = seen(BRICK, ADOBE).resize((900, 600))
    assert np.abs(np.subtract(middle(saved(stored, "JPEG", icc_profile=ADOBE)), BRICK)).max() <= 3


def test_an_srgb_profile_changes_no_bit() -> None:
    with_profile, without = (sample(saved(noisy(), icc_profile=icc)) for icc in (SRGB, None))
    assert with_profile.tobytes() == without.tobytes()


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
        (noisy(), b"no profile at all", color.BROKEN),
        (noisy().convert("L"), ADOBE, color.OTHER_SPACE),
        (noisy(), grey_profile(1.0), color.OTHER_SPACE),
        (noisy().convert("1"), ADOBE, color.OTHER_SPACE),
    ],
)
def test_an_unusable_profile_is_ignored_with_a_warning(
    image: Image.Image, profile: bytes, warning: str
) -> None:
    data = saved(image, icc_profile=profile)
    assert sample(data).tobytes() == sample(saved(image)).tobytes()
    assert warnings_about(data) == [warning]


def test_the_exif_mark_of_adobe_rgb_is_applied() -> None:
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[0xA001] = 0xFFFF
    details[0xA005] = {1: "R03"}
    data = saved(seen(BRICK, ADOBE), "JPEG", quality=100, exif=exif)
    assert np.abs(np.subtract(middle(data), BRICK)).max() <= 3


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
