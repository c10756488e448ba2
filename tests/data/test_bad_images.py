"""Undecodable images are replaced and counted; too many of them end the run."""

# mypy: allow-untyped-defs

import itertools
from pathlib import Path

import pytest
import shard_files as shards
import torch
from streams import opened, pixels, take

from ggcn.config.data import DataConfig
from ggcn.data import stream
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


def damage(folder: Path, numbers: list[int], sizes: list[int], bad: bytes = b"not an image") -> None:
    images = [shards.encode(shards.noise_image(i), "png") for i in range(sum(sizes))]
    for number in numbers:
        images[number] = bad
    shards.build(folder, sizes, images=images)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_image_is_replaced_by_the_next_of_its_lane_and_listed(tmp_path, workers):
    shards.build(tmp_path / "good", [20, 20])
    damage(tmp_path / "bad", [7, 25], [20, 20])
    lanes, steps = Lanes(2, width=2), 20
    good = take(steps, tmp_path / "good", lanes, flip=False)
    with opened(tmp_path / "bad", lanes, flip=False, workers=workers, max_bad_fraction=0.1) as batches:
        bad = list(itertools.islice(batches, steps))
    per_lane = torch.stack([batch.ids for batch in good]).reshape(steps, 2, 2).transpose(0, 1).reshape(2, -1)
    for lane in range(2):
        row = per_lane[lane].tolist()
        expected = [row[k + 1] if number in (7, 25) else number for k, number in enumerate(row[:-1])]
        got = torch.stack([batch.ids for batch in bad]).reshape(steps, 2, 2)[:, lane].flatten().tolist()
        assert got[:-1] == expected
    for batch in bad:
        for number, image in zip(batch.ids.tolist(), pixels(batch), strict=True):
            assert (image == shards.noise_image(number)).all()
    shown = sum(number in (7, 25) for number in per_lane.flatten().tolist())
    assert len(batches.faults) == sum(len(batch.faults) for batch in bad) == shown == 4
    places = {(Path(fault.shard).name, fault.sample) for fault in batches.faults}
    assert places == {("000000.tar", 7), ("000001.tar", 5)}
    assert all(fault.reason == "not a PNG image" for fault in batches.faults)


def test_a_truncated_image_and_one_of_another_size_are_bad(tmp_path):
    complete = shards.encode(shards.noise_image(3), "png")
    for bad, reason in (
        (complete[: len(complete) // 2], ""),
        (shards.encode(shards.noise_image(3, 9), "png"), "9 x 9"),
    ):
        damage(tmp_path, [3], [20], bad)
        with opened(tmp_path, 1, max_bad_fraction=1) as batches:
            assert 3 not in {number for _ in range(20) for number in next(batches).ids.tolist()}
        assert [fault.sample for fault in batches.faults] == [3]
        assert reason in batches.faults[0].reason


def test_too_many_bad_images_are_an_error_and_a_few_at_the_start_are_not():
    config = DataConfig(max_bad_fraction=0.05)
    for replaced, seen in ((3, 3), (5, 100), (50, 1000)):
        stream.check_bad_share(replaced, seen, config)
    for replaced, seen in ((4, 4), (6, 100), (51, 1000)):
        with pytest.raises(
            UserError, match=rf"{replaced} of {seen} images could not .*max_bad_fraction=0.05.*verify_shards"
        ):
            stream.check_bad_share(replaced, seen, config)


@pytest.mark.parametrize(("share", "most"), [(0.29, 29), (0.07, 7), (0.57, 57)])
def test_the_share_of_bad_images_is_compared_exactly(share, most):
    stream.check_bad_share(most, 100, DataConfig(max_bad_fraction=share))
    with pytest.raises(UserError):
        stream.check_bad_share(most + 1, 100, DataConfig(max_bad_fraction=share))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_single_good_image_is_an_error(tmp_path, workers):
    damage(tmp_path, list(range(9)), [9])
    with pytest.raises(UserError, match=r"000000\.tar .*cannot be decoded"):
        take(1, tmp_path, 2, workers=workers)
