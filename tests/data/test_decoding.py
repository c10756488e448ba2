"""Images of a batch have the pixels of their stored files, averaged down and cropped."""

# mypy: allow-untyped-defs

import collections
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import shard_files as shards
import torch
from PIL import Image
from streams import opened, pixels, take

from ggcn.data.decoding import ImageDecoder, header_end
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


@pytest.mark.parametrize(
    ("extension", "channels"), [("png", 3), ("png", 1), ("webp", 3), ("jpg", 3), ("jpg", 1)]
)
def test_images_match_their_ids(tmp_path, extension, channels):
    data = shards.build(tmp_path, [5, 6], extension=extension, channels=channels)
    (batch,) = take(1, tmp_path, Lanes(4, width=2), flip=False)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (8, channels, 8, 8)
    assert batch.ids.dtype == torch.int64
    for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
        assert (image == shards.stored(data)[number]).all()
        assert extension == "jpg" or (image == shards.noise_image(number, 8, channels)).all()


def test_half_of_the_images_are_flipped_depending_on_epoch_and_sample_alone(folder):
    shown: dict[tuple[int, int], bool] = {}
    for lanes in (4, 15):
        length = 61 // lanes
        for batch in take(8 * length, folder, lanes):
            for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
                mirrored = bool((image == shards.noise_image(number)[:, ::-1]).all())
                assert mirrored or (image == shards.noise_image(number)).all()
                assert shown.setdefault((batch.step // length, number), mirrored) == mirrored
    assert 0.4 < np.mean(list(shown.values())) < 0.6
    per_sample = collections.Counter(number for (_, number), mirrored in shown.items() if mirrored)
    assert 0 < max(per_sample.values()) < 8


def test_larger_images_are_averaged_down(tmp_path):
    shards.build(tmp_path, [9], size=24)
    (batch,) = take(1, tmp_path, size=8, flip=False)
    for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
        mean = shards.noise_image(number, 24).reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
        assert np.abs(image - mean).max() < 0.6  # PIL rounds a little off


@pytest.mark.parametrize("size", [64, 32, 16, 8, 4])
def test_large_jpegs_are_decoded_at_a_fraction_that_agrees_with_averaging(tmp_path, size):
    """Smooth pictures: there the transform's own scaling and averaging are nearly the same."""
    y, x = np.mgrid[:64, :64]
    smooth = [np.stack([2 * x + y + i, 3 * y, 255 - 3 * x], axis=2).astype(np.uint8) for i in range(4)]
    shards.build(tmp_path, [4], 64, "jpg", images=[shards.encode(image, "jpg") for image in smooth])
    (batch,) = take(1, tmp_path, size=size, flip=False)
    for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
        mean = smooth[number].reshape(size, 64 // size, size, 64 // size, 3).mean(axis=(1, 3))
        assert np.abs(image - mean).max() < 6


def jpegs() -> Iterator[bytes]:
    """One picture in every kind of JPEG: sides of 48 pixels."""
    image = Image.fromarray(shards.noise_image(0, 12)).resize((48, 48), Image.Resampling.BICUBIC)
    kinds: list[tuple[str, dict[str, Any]]] = [("RGB", {"subsampling": number}) for number in range(3)]
    kinds += [("RGB", {"quality": 100, "optimize": True}), ("RGB", {"progressive": True, "quality": 60})]
    kinds += [("RGB", {"restart_marker_blocks": 2}), ("RGB", {"keep_rgb": True})]
    for mode, options in [*kinds, ("L", {}), ("L", {"progressive": True}), ("CMYK", {})]:
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG", **options)
        yield file.getvalue()
    yield file.getvalue() + b"more"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("scale", "crop"), [(1, 48), (2, 24), (4, 12), (8, 6), (1, 21), (2, 7)])
def test_every_kind_of_jpeg_has_the_same_pixels_as_in_pillow(mode, scale, crop):
    """Whichever library decodes it: also where the pixels are cut out, averaged, or in other colours, and whatever
    kinds the same decoder has seen."""
    forms = {pool: ImageDecoder("jpg", mode, 48, scale, crop, pool) for pool in (1, 3)}
    for number, data in enumerate(jpegs()):
        full: Image.Image = Image.open(io.BytesIO(data))
        full.draft(mode if scale > 1 else None, (48 // scale,) * 2)
        for pool in {1, 3 if crop % 3 == 0 else 1}:
            out = np.empty((crop // pool, crop // pool, len(mode)), np.uint8)
            forms[pool].decode(data, 3 << 32 | 2, out)
            places = 48 // scale - crop + 1
            x, y = 2 % places, 3 % places
            expected = full.convert(mode).crop((x, y, x + crop, y + crop)).reduce(pool)
            assert (out.squeeze() == np.asarray(expected)).all(), number


def test_a_damaged_jpeg_gives_the_same_as_in_pillow():
    """Bytes of one are altered, and it is cut off, at every few places."""

    def pillow(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        assert image.size == (48, 48)
        return np.asarray(image.convert("RGB"))

    def ours(data: bytes) -> np.ndarray:
        out = np.empty((48, 48, 3), np.uint8)
        decoder.decode(data, 0, out)
        return out

    decoder = ImageDecoder("jpg", "RGB", 48, 1, 48, 1)
    (full, *_) = jpegs()
    ours(full)
    assert decoder.headers == [full[: header_end(full)]]
    results = []
    for place in range(0, len(full), 3):
        for data in (full[:place], full[:place] + bytes([full[place] ^ 0x55]) + full[place + 1 :]):
            results.append(outcome(pillow, data))
            assert outcome(ours, data) == results[-1]
    assert 0 < results.count("refused") < len(results)


def outcome(decode: Callable[[bytes], np.ndarray], data: bytes) -> bytes | str:
    try:
        return decode(data).tobytes()
    except Exception:
        return "refused"


@pytest.mark.parametrize(("extension", "size"), [("png", 12), ("jpg", 11)])
def test_random_crops_are_squares_of_the_image_and_differ_between_epochs(tmp_path, extension, size):
    """No half-size decoding of an odd side: it would have no such squares."""
    full = shards.stored(shards.build(tmp_path, [4], size, extension))
    corners = collections.defaultdict(set)
    for batch in take(12, tmp_path, size=4, crop=8, flip=False):
        for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
            corners[number].add(corner_of(image, full[number]))
    assert len(set.union(*corners.values())) > 8
    assert min(len(places) for places in corners.values()) > 3


def corner_of(image: np.ndarray, full: np.ndarray) -> tuple[int, int]:
    """Where in `full` the 8 x 8 square lies whose 2 x 2 averages are `image`."""
    for y, x in itertools.product(range(len(full) - 7), repeat=2):
        mean = full[y : y + 8, x : x + 8].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
        if np.abs(image - mean).max() <= 0.51:
            return y, x
    raise AssertionError("no such square")


@pytest.mark.parametrize(("size", "crop"), [(16, 0), (6, 0), (3, 0), (4, 9), (4, 6), (8, 4)])
def test_sizes_that_would_need_interpolation_are_refused(folder, size, crop):
    with pytest.raises(UserError, match=f"build shards with --size {size}"):
        opened(folder, size=size, crop=crop)


def test_a_jpeg_of_another_size_is_noticed_after_many_of_the_right_one():
    form = ImageDecoder("jpg", "RGB", 8, 1, 8, 1)
    right, wrong = (shards.encode(shards.noise_image(1, size), "jpg") for size in (8, 16))
    out = np.empty((8, 8, 3), np.uint8)
    for data in [right] * 3:
        form.decode(data, 0, out)
    assert len(form.headers) == 1
    with pytest.raises(ValueError, match="16 x 16 pixels instead of 8 x 8"):
        form.decode(wrong, 0, out)
    assert header_end(right[:40]) == header_end(b"") == header_end(b"\xff\xd8\xff\xda\0\0") == 0
