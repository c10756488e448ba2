"""Streams over real shards: same batches for everybody, from local and remote folders, through damage."""

# mypy: allow-untyped-defs

import collections
import concurrent.futures
import errno
import io
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import psutil
import pytest
import shard_files as shards
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from ggcn import locks
from ggcn.config.data import DataConfig
from ggcn.data import fetch, stream
from ggcn.data.decoding import View
from ggcn.data.stream import Batch, Stream
from ggcn.distributed.lanes import Lanes
from ggcn.errors import TransientError, UserError


def opened(
    folder: Path | str, lanes: Lanes | int = 4, size: int = 8, start: int = 0, **settings: Any
) -> Stream:
    """A stream without workers and with quick retries unless `settings` say otherwise."""
    config = DataConfig(**{"shards": str(folder), "workers": 0, "retries": 2, "backoff": 0.01, **settings})
    return stream.build(config, lanes if isinstance(lanes, Lanes) else Lanes(lanes), 1, size, start)


def take(count: int, *args: Any, **settings: Any) -> list[Batch]:
    with opened(*args, **settings) as batches:
        return list(itertools.islice(batches, count))


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a.ids, b.ids) and torch.equal(a.images, b.images) for a, b in pairs)


def pixels(batch: Batch) -> np.ndarray:
    """[samples, height, width, channels]"""
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 samples of 8 x 8 pixels in five uneven shards."""
    path = tmp_path_factory.mktemp("shards")
    shards.build(path, [13, 1, 20, 7, 20])
    return path


# what a batch holds


@pytest.mark.parametrize(
    ("extension", "channels"), [("png", 3), ("png", 1), ("webp", 3), ("jpg", 3), ("jpg", 1)]
)
def test_images_are_those_of_their_ids(tmp_path, extension, channels):
    data = shards.build(tmp_path, [5, 6], extension=extension, channels=channels)
    (batch,) = take(1, tmp_path, Lanes(4, width=2), flip=False)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (8, channels, 8, 8)
    assert batch.ids.dtype == torch.int64
    for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
        assert (image == shards.stored(data)[number]).all()
        assert extension == "jpg" or (image == shards.picture(number, 8, channels)).all()


def test_half_of_the_showings_are_mirrored_decided_by_epoch_and_sample_alone(folder):
    shown: dict[tuple[int, int], bool] = {}
    for lanes in (4, 15):
        length = 61 // lanes
        for batch in take(8 * length, folder, lanes):
            for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
                mirrored = bool((image == shards.picture(number)[:, ::-1]).all())
                assert mirrored or (image == shards.picture(number)).all()
                assert shown.setdefault((batch.step // length, number), mirrored) == mirrored
    assert 0.4 < np.mean(list(shown.values())) < 0.6
    per_sample = collections.Counter(number for (_, number), mirrored in shown.items() if mirrored)
    assert 0 < max(per_sample.values()) < 8


def test_larger_images_are_averaged_down(tmp_path):
    shards.build(tmp_path, [9], size=24)
    (batch,) = take(1, tmp_path, size=8, flip=False)
    for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
        mean = shards.picture(number, 24).reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
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
    image = Image.fromarray(shards.picture(0, 12)).resize((48, 48), Image.Resampling.BICUBIC)
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
def test_every_kind_of_jpeg_has_pillows_very_pixels(mode, scale, crop):
    """Whichever library decodes it: also where the pixels are cut out, averaged, or in other colours."""
    for number, data in enumerate(jpegs()):
        whole: Image.Image = Image.open(io.BytesIO(data))
        whole.draft(mode if scale > 1 else None, (48 // scale,) * 2)
        for pool in {1, 3 if crop % 3 == 0 else 1}:
            form = View("jpg", mode, 48, scale, crop, pool)
            out = np.empty((crop // pool, crop // pool, len(mode)), np.uint8)
            form.decode(data, 3 << 32 | 2, out)
            places = 48 // scale - crop + 1
            x, y = 2 % places, 3 % places
            want = whole.convert(mode).crop((x, y, x + crop, y + crop)).reduce(pool)
            assert (out.squeeze() == np.asarray(want)).all(), number


def test_a_damaged_jpeg_is_what_pillow_makes_of_it():
    """Bytes of one are altered, and it is cut off, at every few places."""

    def pillow(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        assert image.size == (48, 48)
        return np.asarray(image.convert("RGB"))

    def ours(data: bytes) -> np.ndarray:
        out = np.empty((48, 48, 3), np.uint8)
        View("jpg", "RGB", 48, 1, 48, 1).decode(data, 0, out)
        return out

    (whole, *_) = jpegs()
    results = []
    for place in range(0, len(whole), 3):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            results.append(outcome(pillow, data))
            assert outcome(ours, data) == results[-1]
    assert 0 < results.count("refused") < len(results)


def outcome(decode: Callable[[bytes], np.ndarray], data: bytes) -> bytes | str:
    try:
        return decode(data).tobytes()
    except Exception:
        return "refused"


@pytest.mark.parametrize(("extension", "size"), [("png", 12), ("jpg", 11)])
def test_random_crops_are_squares_of_the_image_and_move_from_epoch_to_epoch(tmp_path, extension, size):
    """No half-size decoding of an odd side: it would have no such squares."""
    whole = shards.stored(shards.build(tmp_path, [4], size, extension))
    corners = collections.defaultdict(set)
    for batch in take(12, tmp_path, size=4, crop=8, flip=False):
        for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
            corners[number].add(corner_of(image, whole[number]))
    assert len(set.union(*corners.values())) > 8
    assert min(len(places) for places in corners.values()) > 3


def corner_of(image: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    """Where in `whole` the 8 x 8 square lies whose 2 x 2 averages are `image`."""
    for y, x in itertools.product(range(len(whole) - 7), repeat=2):
        mean = whole[y : y + 8, x : x + 8].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
        if np.abs(image - mean).max() <= 0.51:
            return y, x
    raise AssertionError("no such square")


@pytest.mark.parametrize(("size", "crop"), [(16, 0), (6, 0), (3, 0), (4, 9), (4, 6), (8, 4)])
def test_sizes_that_would_need_interpolation_are_refused(folder, size, crop):
    with pytest.raises(UserError, match=f"build shards with --size {size}"):
        opened(folder, size=size, crop=crop)


# the same batches for everybody


@pytest.mark.parametrize(
    ("world", "workers"), [(2, 0), (4, 0), (8, 0), (1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (8, 3)]
)
def test_any_world_and_any_number_of_workers_give_the_same_global_batches(folder, world, workers):
    """Eight lanes of seven samples an epoch, three of them per step, over an epoch's end."""
    steps = 5
    whole = take(steps, folder, Lanes(8, width=3))
    parts = [take(steps, folder, Lanes(8, rank, world, 3), workers=workers) for rank in range(world)]
    for step in range(steps):
        assert [part[step].step for part in parts] == [step] * world
        assert torch.equal(torch.cat([part[step].ids for part in parts]), whole[step].ids)
        assert torch.equal(torch.cat([part[step].images for part in parts]), whole[step].images)


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_over_ranks_and_workers_is_every_sample_at_most_once(folder, workers):
    ids = [
        batch.ids for rank in range(2) for batch in take(61 // 4, folder, Lanes(4, rank, 2), workers=workers)
    ]
    assert len(set(torch.cat(ids).tolist())) == len(torch.cat(ids)) == 4 * (61 // 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.integers(1, 3))
def test_a_run_stopped_anywhere_goes_on_with_the_same_sequence(folder, stop, width):
    lanes = Lanes(4, width=width)
    assert same(take(3, folder, lanes, start=stop), take(stop + 3, folder, lanes)[stop:])


def test_a_run_stopped_with_workers_goes_on_with_other_workers(folder):
    whole = take(9, folder, Lanes(4))
    assert same(take(4, folder, Lanes(4), workers=2) + take(5, folder, Lanes(4), start=4, workers=3), whole)


def test_fewer_shards_than_ranks_and_a_data_set_smaller_than_a_batch_work(tmp_path):
    shards.build(tmp_path, [5])
    batches = [take(3, tmp_path, Lanes(4, rank, 4, width=3)) for rank in range(4)]
    assert all(batch.images.shape == (3, 3, 8, 8) for part in batches for batch in part)
    with pytest.raises(UserError, match="5 images cannot feed 8 lanes"):
        opened(tmp_path, 8)


def test_opening_a_stream_takes_no_number_from_torchs_generator(folder):
    before = torch.get_rng_state()
    take(2, folder, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mixture_shows_both_folders_in_their_shares(folder, tmp_path):
    shards.build(tmp_path, [6, 6], images=[shards.encode(shards.picture(100 + i), "png") for i in range(12)])
    mix = {str(folder): 3, str(tmp_path): 1}
    batches = take(25, "", 8, mixture=mix, flip=False)
    numbers = torch.cat([batch.ids for batch in batches])
    assert (numbers >= 61).sum() == 50
    for number, image in zip(batches[7].ids.tolist(), pixels(batches[7]), strict=True):
        assert (image == shards.picture(number if number < 61 else number + 39)).all()
    assert same(take(3, "", 8, mixture=mix, flip=False, start=22, workers=2), batches[22:])
    assert [batch.ids.tolist() for batch in take(2, "", Lanes(8, 1, 2), mixture=mix)] == [
        batch.ids[4:].tolist() for batch in batches[:2]
    ]


def test_grey_and_colour_do_not_mix(folder, tmp_path):
    shards.build(tmp_path, [6], channels=1)
    with pytest.raises(UserError, match="grey and colour"):
        opened("", mixture={str(folder): 1, str(tmp_path): 1})


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_kept_keep_their_images(folder, workers):
    """Memory is used again for later batches, but none that anybody still looks into, even at a corner."""
    want = [batch.images.clone() for batch in take(40, folder, workers=1)]
    with opened(folder, workers=workers) as batches:
        kept = [next(batches).images[1:, :, 2:, ::2] for _ in range(20)]
        for _ in range(10):
            next(batches)
        is_transient = [next(batches).images.numpy().transpose(1, 2, 3, 0) for _ in range(10)]
    for got, whole in zip(kept, want[:20], strict=True):
        assert torch.equal(got, whole[1:, :, 2:, ::2])
    for array, whole in zip(is_transient, want[30:], strict=True):
        assert (array == whole.permute(1, 2, 3, 0).numpy()).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_of_batches_that_are_dropped_is_used_again(folder, workers):
    with opened(folder, workers=workers, prefetch=2) as batches:
        places = [next(batches).images.data_ptr() for _ in range(30)]
    assert len(set(places)) <= 4


# damage


def damage(folder: Path, numbers: list[int], sizes: list[int], bad: bytes = b"not an image") -> None:
    images = [shards.encode(shards.picture(i), "png") for i in range(sum(sizes))]
    for number in numbers:
        images[number] = bad
    shards.build(folder, sizes, images=images)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_image_is_replaced_by_the_lanes_next_and_listed(tmp_path, workers):
    shards.build(tmp_path / "good", [20, 20])
    damage(tmp_path / "bad", [7, 25], [20, 20])
    lanes, steps = Lanes(2, width=2), 20
    good = take(steps, tmp_path / "good", lanes, flip=False)
    with opened(tmp_path / "bad", lanes, flip=False, workers=workers, max_bad_fraction=0.1) as batches:
        bad = list(itertools.islice(batches, steps))
    per_lane = torch.stack([batch.ids for batch in good]).reshape(steps, 2, 2).transpose(0, 1).reshape(2, -1)
    for lane in range(2):
        row = per_lane[lane].tolist()
        want = [row[k + 1] if number in (7, 25) else number for k, number in enumerate(row[:-1])]
        got = torch.stack([batch.ids for batch in bad]).reshape(steps, 2, 2)[:, lane].flatten().tolist()
        assert got[:-1] == want
    for batch in bad:
        for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
            assert (image == shards.picture(number)).all()
    shown = sum(number in (7, 25) for number in per_lane.flatten().tolist())
    assert len(batches.faults) == sum(len(batch.faults) for batch in bad) == shown == 4
    places = {(Path(fault.shard).name, fault.sample) for fault in batches.faults}
    assert places == {("000000.tar", 7), ("000001.tar", 5)}
    assert all(fault.reason == "not a PNG image" for fault in batches.faults)


def test_a_truncated_image_and_one_of_another_size_are_bad(tmp_path):
    whole = shards.encode(shards.picture(3), "png")
    for bad, reason in (
        (whole[: len(whole) // 2], ""),
        (shards.encode(shards.picture(3, 9), "png"), "9 x 9"),
    ):
        damage(tmp_path, [3], [20], bad)
        with opened(tmp_path, 1, max_bad_fraction=1) as batches:
            assert 3 not in {number for _ in range(20) for number in next(batches).ids.tolist()}
        assert [fault.sample for fault in batches.faults] == [3]
        assert reason in batches.faults[0].reason


def test_too_large_a_share_of_bad_images_is_an_error_and_a_few_at_the_very_start_are_not():
    config = DataConfig(max_bad_fraction=0.05)
    for replaced, seen in ((3, 3), (5, 100), (50, 1000)):
        stream.check_share(replaced, seen, config)
    for replaced, seen in ((4, 4), (6, 100), (51, 1000)):
        with pytest.raises(
            UserError, match=rf"{replaced} of {seen} images could not .*max_bad_fraction=0.05.*verify_shards"
        ):
            stream.check_share(replaced, seen, config)


@pytest.mark.parametrize(("share", "most"), [(0.29, 29), (0.07, 7), (0.57, 57)])
def test_a_share_of_bad_images_is_counted_as_it_is_written(share, most):
    stream.check_share(most, 100, DataConfig(max_bad_fraction=share))
    with pytest.raises(UserError):
        stream.check_share(most + 1, 100, DataConfig(max_bad_fraction=share))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_single_good_image_is_an_error_not_a_search_for_ever(tmp_path, workers):
    damage(tmp_path, list(range(9)), [9])
    with pytest.raises(UserError, match=r"000000\.tar .*cannot be decoded"):
        take(1, tmp_path, 2, workers=workers)


def test_shards_that_differ_from_the_manifest_are_found_before_training(tmp_path):
    shards.build(tmp_path, [5, 5, 5, 5])
    path = tmp_path / "000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"000002\.tar has"):
        opened(tmp_path)
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    opened(tmp_path).close()
    with pytest.raises(UserError, match=r"000002\.tar was altered"):
        opened(tmp_path, verify="full")
    assert [refused(tmp_path, Lanes(4, rank, 4)) for rank in range(4)] == [False, False, True, False]
    path.unlink()
    with pytest.raises(UserError, match=r"000002\.tar is missing"):
        opened(tmp_path)


def refused(folder: Path, lanes: Lanes) -> bool:
    try:
        opened(folder, lanes, verify="full").close()
    except UserError:
        return True
    return False


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loss", ["deleted", "truncated"])
def test_a_shard_lost_during_the_run_ends_it_with_a_sentence(tmp_path, workers, loss):
    shards.build(tmp_path, [8])
    path = tmp_path / "000000.tar"
    batches = opened(tmp_path, 2, workers=workers)
    path.unlink() if loss == "deleted" else os.truncate(path, 100)
    with batches, pytest.raises(UserError, match=r"000000\.tar cannot be read .*; restore it") as caught:
        list(itertools.islice(batches, 10))
    assert "\n" not in str(caught.value)


# remote folders and the cache


@pytest.fixture
def server(folder: Path) -> Iterator[shards.Server]:
    with shards.serve(folder) as state:
        yield state


@pytest.mark.parametrize("workers", [0, 2])
def test_a_web_servers_shards_give_the_same_batches(folder, server, workers):
    assert same(take(6, server.url, workers=workers), take(6, folder))


def test_a_server_that_fails_for_a_while_is_asked_again(folder, server):
    server.refuse = 2
    batches = opened(server.url)
    assert server.refused == 2
    server.refuse = 2
    assert same([next(batches)], take(1, folder))
    assert server.refused == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_keeps_failing_is_named(server, workers):
    batches = opened(server.url, workers=workers)
    server.refuse = 10**6
    with batches, pytest.raises(TransientError, match=rf"{server.url}/00000\d.tar cannot be read .*503"):
        list(itertools.islice(batches, 10))
    if workers == 0:
        assert server.refused == 3


def test_a_wrong_address_is_refused_at_once(server, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/manifest.json cannot be read .*404"):
        opened(f"{server.url}/nowhere", retries=10, backoff=100)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/manifest.json cannot be read"):
        opened("http://127.0.0.1:9")
    with pytest.raises(UserError, match="nosuch://bucket/manifest.json needs an fsspec plug-in"):
        opened("nosuch://bucket")


def test_a_server_of_whole_files_only_needs_the_cache(folder, server, tmp_path):
    server.ranges = False
    with pytest.raises(UserError, match="whole files only; set data.cache_dir"):
        take(1, server.url)
    assert same(take(6, server.url, cache_dir=str(tmp_path)), take(6, folder))


@pytest.mark.parametrize("workers", [0, 3])
def test_a_cached_shard_is_fetched_once(folder, server, tmp_path, workers):
    settings = {"cache_dir": str(tmp_path), "workers": workers}
    assert same(take(30, server.url, **settings), take(30, folder))
    take(30, server.url, **settings)
    fetched = collections.Counter(path for path in server.paths if path.endswith(".tar"))
    assert set(fetched.values()) == {1}
    assert len(fetched) == 5


def test_a_shard_that_arrives_altered_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shards.build(copy, [10])
    tar = (copy / "000000.tar").read_bytes()
    (copy / "000000.tar").write_bytes(tar[:4096] + bytes([tar[4096] ^ 1]) + tar[4097:])
    with shards.serve(copy) as server, pytest.raises(UserError, match=r"000000\.tar cannot be read .*sha256"):
        take(1, server.url, cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.part"))


def draw_through_cache(folder: Path, cache: Path, limit: float, rank: int) -> tuple[list[int], int]:
    """A rank: the ids it drew and the largest size that it saw the cache have."""
    ids, most = [], 0
    with opened(folder, Lanes(3, rank, 3), flip=False, cache_dir=str(cache), cache_gb=limit / 1e9) as batches:
        for batch in itertools.islice(batches, 200):
            ids += batch.ids.tolist()
            assert (pixels(batch)[0] == shards.picture(ids[-1])).all()
            most = max(most, size_of(cache))
    return ids, most


def size_of(cache: Path) -> int:
    files = fetch.Cache(cache, 0)
    with files._alone():
        return sum(size for _, size, _ in files._files())


def test_ranks_share_a_small_cache_without_exceeding_it_or_losing_a_byte(folder, tmp_path):
    """Room for two or three of five shards: each rank evicts what the others may want next."""
    limit = 2.5 * max(shard.bytes for shard in stream.manifest.load(folder).shards)
    with concurrent.futures.ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        ranks = [pool.submit(draw_through_cache, folder, tmp_path, limit, rank) for rank in range(3)]
    for rank, (ids, most) in enumerate(process.result() for process in ranks):
        assert ids == [int(batch.ids) for batch in take(200, folder, Lanes(3, rank, 3))]
        assert 0 < most <= limit


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process and its forks hear from now on from a file system such as Lustre without -o flock."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", none)
    monkeypatch.setattr("fcntl.lockf", none)
    monkeypatch.setenv(locks.WARNED, "")


def read_all(files: list[fetch.Remote], config: DataConfig) -> bool:
    """A rank: whether every shard reads as it should."""
    reader = fetch.Reader(config)
    return all(reader.read(file, 0, file.bytes) == Path(file.url).read_bytes() for file in files * 5)


@pytest.mark.parametrize("room", [2.5, 10])
def test_a_cache_folder_without_locks_is_shared_all_the_same(folder, tmp_path, monkeypatch, caplog, room):
    """Where all shards fit, each is downloaded once; where few do, what is read and evicted at once stays whole."""
    without_locks(monkeypatch)
    files, cache = remotes(folder), tmp_path / "cache"
    limit = room * max(file.bytes for file in files)
    config = DataConfig(cache_dir=str(cache), cache_gb=limit / 1e9, retries=0)
    downloaded, download = tmp_path / "downloaded", fetch.download

    def noted(*args: Any) -> None:
        with downloaded.open("a") as lines:
            lines.write("one\n")
        download(*args)

    monkeypatch.setattr(fetch, "download", noted)
    fetch.Reader(config)
    assert f"{cache} lies on a file system without locks" in caplog.text
    with concurrent.futures.ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        assert all(rank.result() for rank in [pool.submit(read_all, files, config) for _ in range(3)])
    assert size_of(cache) <= limit
    if room == 10:
        assert len(downloaded.read_text().split()) == len(files)
    assert not [path.name for path in cache.iterdir() if path.suffix in (".part", ".held", ".writer")]


def test_a_cache_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    shards.build(tmp_path / "data", [4])
    (file,) = remotes(tmp_path / "data")
    reader = fetch.Reader(DataConfig(cache_dir=str(tmp_path / "cache"), retries=0))
    opened = os.open

    def refused(path: Any, *args: Any) -> int:
        if str(path).endswith(".part"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UserError, match=f"data.cache_dir={tmp_path}/cache cannot be used"):
        reader.read(file, 0, 10)


def remotes(folder: Path) -> list[fetch.Remote]:
    data = stream.manifest.load(folder)
    return [fetch.Remote(str(folder / shard.name), shard.bytes, shard.sha256) for shard in data.shards]


def held(cache: fetch.Cache, shard: fetch.Remote) -> int:
    descriptor = cache.open(shard)
    assert descriptor is not None
    return descriptor


def contents(cache: fetch.Cache) -> set[str]:
    return {path.name for path in cache.folder.glob("[!.]*")}


def test_eviction_takes_the_longest_unused_and_never_one_in_use(tmp_path):
    shards.build(tmp_path / "data", [4, 4, 4, 4])
    files = remotes(tmp_path / "data")
    cache = fetch.Cache(tmp_path / "cache", 3 * files[0].bytes)
    in_use = [held(cache, files[0])]
    for number, age in ((1, 300), (2, 200), (0, 400)):
        os.close(held(cache, files[number]))
        os.utime(cache.folder / files[number].sha256, (time.time() - age,) * 2)
    in_use += [held(cache, files[1]), held(cache, files[3])]
    assert contents(cache) == {files[number].sha256 for number in (0, 1, 3)}
    assert cache.open(files[2]) is None
    os.close(in_use.pop(0))
    in_use.append(held(cache, files[2]))
    assert contents(cache) == {files[number].sha256 for number in (1, 2, 3)}
    for descriptor in in_use:
        os.close(descriptor)


def test_what_a_killed_download_left_neither_blocks_nor_counts_for_ever(tmp_path):
    shards.build(tmp_path / "data", [4, 4])
    files = remotes(tmp_path / "data")
    cache = fetch.Cache(tmp_path / "cache", files[0].bytes)
    for file in (files[0], fetch.Remote("", 1, "0" * 64)):
        (cache.folder / f"{file.sha256}.part").write_bytes(bytes(file.bytes))
    descriptor = held(cache, files[0])
    assert os.pread(descriptor, files[0].bytes, 0) == Path(files[0].url).read_bytes()
    assert contents(cache) == {files[0].sha256}
    os.close(descriptor)


def test_a_shard_that_comes_back_as_another_file_is_read_on(tmp_path):
    shards.build(tmp_path, [4])
    (shard,) = remotes(tmp_path)
    data = Path(shard.url).read_bytes()
    reader = fetch.Reader(DataConfig(retries=0))
    assert reader.read(shard, 512, 10) == data[512:522]
    os.truncate(shard.url, 100)
    with pytest.raises(UserError, match="cannot be read"):
        reader.read(shard, 512, 10)
    (tmp_path / "copy").write_bytes(data)
    os.replace(tmp_path / "copy", shard.url)
    assert reader.read(shard, 512, 10) == data[512:522]
    reader.close()


def test_a_cache_too_small_for_a_shard_is_passed_by(folder, server, tmp_path):
    assert same(take(6, server.url, cache_dir=str(tmp_path), cache_gb=1e-6), take(6, folder))


def test_a_cache_that_cannot_be_is_refused_in_a_sentence(folder):
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"data.cache_dir=/dev/null/x cannot be made"):
            take(1, folder, cache_dir="/dev/null/x", workers=workers)


def test_a_pipe_runs_only_when_allowed(folder, tmp_path):
    pipe = f"pipe:cat {folder}/{{}}"
    with pytest.raises(UserError, match="set data.allow_pipe=true"):
        opened(pipe, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="set data.cache_dir"):
        opened(pipe, allow_pipe=True)
    assert same(take(6, pipe, allow_pipe=True, cache_dir=str(tmp_path)), take(6, folder))
    one = max(shard.bytes for shard in remotes(folder)) / 1e9
    assert same(
        take(6, pipe, allow_pipe=True, cache_dir=str(tmp_path / "one"), cache_gb=one), take(6, folder)
    )
    with pytest.raises(UserError, match="exit 1"):
        opened("pipe:false", allow_pipe=True, cache_dir=str(tmp_path))


def test_an_object_store_is_read_through_fsspec(folder):
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/faces/{path.name}", path.read_bytes())
    assert same(take(6, "memory://faces"), take(6, folder))


# workers and signals

LEFT_OPEN = """
import sys, time
import psutil
from ggcn.data import stream
from ggcn.config.data import DataConfig
from ggcn.distributed.lanes import Lanes
batches = stream.build(DataConfig(shards=sys.argv[1], workers=2, backoff=30), Lanes(4), 1, 8)
print(*[child.pid for child in psutil.Process().children()], flush=True)
time.sleep(float(sys.argv[2]))
"""


def left_open(folder: Path | str, seconds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", LEFT_OPEN, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def with_workers(*args: Any, **settings: Any) -> tuple[Stream, list[psutil.Process]]:
    """A stream and its worker processes, which are not the only children of a test run."""
    before = psutil.Process().children()
    batches = opened(*args, **settings)
    return batches, [child for child in psutil.Process().children() if child not in before]


def test_workers_outlive_the_signals_that_stop_a_run_from_their_first_moment_on(folder):
    batches, workers = with_workers(folder, workers=2)
    with batches:
        for child in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                child.send_signal(number)
        assert same(list(itertools.islice(batches, 13)), take(13, folder))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(stream.STOP_SIGNALS)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_a_killed_rank_whatever_they_are_doing(server, busy):
    """Also while they start, and while they wait half a minute for a server."""
    server.busy = busy
    with left_open(server.url, 600) as rank:
        assert rank.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
        until(lambda: server.refused > 1 or not busy)
        rank.kill()
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)


def test_a_program_that_forgets_its_stream_ends(folder):
    """Its workers do not hear the SIGTERM with which Python ends forgotten children."""
    with left_open(folder, 0) as program:
        said = program.communicate(timeout=60)[0]
    assert program.returncode == 0
    assert re.fullmatch(r"\d+ \d+\n", said)


def test_closing_a_stream_ends_its_workers(folder):
    batches, workers = with_workers(folder, workers=2)
    assert len(workers) == 2
    batches.close()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert list(batches) == []


def test_closing_a_stream_closes_its_shards_which_frees_cached_ones(folder, tmp_path):
    for cache in ("", str(tmp_path)):
        with opened(folder, cache_dir=cache) as batches:
            next(batches)
            shards_open = [file.path for file in psutil.Process().open_files() if str(folder) in file.path]
            assert cache or shards_open
        assert not [
            f for f in psutil.Process().open_files() if f.path.startswith((str(folder), str(tmp_path)))
        ]


def test_a_killed_worker_is_reported_in_a_sentence_when_its_batch_is_due(folder):
    batches, (worker,) = with_workers(folder, workers=1, prefetch=1)
    next(batches)
    worker.kill()
    until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
    time.sleep(0.2)  # an error that came at once would come here
    with batches, pytest.raises(TransientError, match="a loader worker died"):
        list(itertools.islice(batches, 50))


# settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"prefetch": 0},
        {"shuffle_block": 0},
        {"verify": "some"},
        {"max_bad_fraction": 2},
        {"cache_gb": 0},
    ],
)
def test_settings_out_of_range_are_named(folder, wrong):
    with pytest.raises(UserError, match=rf"data\.{next(iter(wrong))}="):
        opened(folder, **wrong)


def test_one_of_shards_and_mixture_is_asked_for(folder):
    with pytest.raises(UserError, match="either data.shards"):
        opened("")
    with pytest.raises(UserError, match="either data.shards"):
        opened(folder, mixture={"x": 1})


def test_settings_are_a_schema_and_need_no_torch():
    schema = OmegaConf.structured(DataConfig)
    merged = OmegaConf.merge(schema, {"mixture": {"shards/faces": 3, "http://host/x": 1}})
    assert OmegaConf.to_object(merged).folders() == {"shards/faces": 3.0, "http://host/x": 1.0}  # type: ignore[union-attr]
    with pytest.raises(Exception, match="shard"):
        OmegaConf.merge(schema, {"shard": "typo"})
    code = "import sys, ggcn.config.data, ggcn.data.order; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 0
