"""Batches are the same for every number of ranks and workers, and from every step on."""

# mypy: allow-untyped-defs

import subprocess
import sys
import textwrap

import pytest
import shard_files as shards
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from streams import opened, pixels, same, take

from ggcn.config.data import DataConfig
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


@pytest.mark.parametrize(
    ("world", "workers"), [(2, 0), (4, 0), (8, 0), (1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (8, 3)]
)
def test_any_world_and_any_number_of_workers_give_the_same_global_batches(folder, world, workers):
    """Eight lanes of seven samples an epoch, three of them per step, over an epoch's end."""
    steps = 5
    expected = take(steps, folder, Lanes(8, width=3))
    parts = [take(steps, folder, Lanes(8, rank, world, 3), workers=workers) for rank in range(world)]
    for step in range(steps):
        assert [part[step].step for part in parts] == [step] * world
        assert torch.equal(torch.cat([part[step].ids for part in parts]), expected[step].ids)
        assert torch.equal(torch.cat([part[step].images for part in parts]), expected[step].images)


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_over_ranks_and_workers_is_every_sample_at_most_once(folder, workers):
    ids = [
        batch.ids for rank in range(2) for batch in take(61 // 4, folder, Lanes(4, rank, 2), workers=workers)
    ]
    assert len(set(torch.cat(ids).tolist())) == len(torch.cat(ids)) == 4 * (61 // 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.integers(1, 3))
def test_a_run_stopped_anywhere_continues_with_the_same_sequence(folder, stop, width):
    lanes = Lanes(4, width=width)
    assert same(take(3, folder, lanes, start=stop), take(stop + 3, folder, lanes)[stop:])


def test_a_run_stopped_with_workers_continues_with_other_workers(folder):
    expected = take(9, folder, Lanes(4))
    assert same(
        take(4, folder, Lanes(4), workers=2) + take(5, folder, Lanes(4), start=4, workers=3), expected
    )


def test_fewer_shards_than_ranks_and_a_data_set_smaller_than_a_batch_work(tmp_path):
    shards.build(tmp_path, [5])
    batches = [take(3, tmp_path, Lanes(4, rank, 4, width=3)) for rank in range(4)]
    assert all(batch.images.shape == (3, 3, 8, 8) for part in batches for batch in part)
    with pytest.raises(UserError, match="5 images cannot feed 8 lanes"):
        opened(tmp_path, 8)


def test_opening_a_stream_draws_nothing_from_torchs_generator(folder):
    before = torch.get_rng_state()
    take(2, folder, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mixture_draws_both_folders_in_their_shares(folder, tmp_path):
    shards.build(
        tmp_path, [6, 6], images=[shards.encode(shards.noise_image(100 + i), "png") for i in range(12)]
    )
    mix = {str(folder): 3, str(tmp_path): 1}
    batches = take(25, "", 8, mixture=mix, flip=False)
    numbers = torch.cat([batch.ids for batch in batches])
    assert (numbers >= 61).sum() == 50
    for number, image in zip(batches[7].ids.tolist(), pixels(batches[7]), strict=True):
        assert (image == shards.noise_image(number if number < 61 else number + 39)).all()
    assert same(take(3, "", 8, mixture=mix, flip=False, start=22, workers=2), batches[22:])
    assert [batch.ids.tolist() for batch in take(2, "", Lanes(8, 1, 2), mixture=mix)] == [
        batch.ids[4:].tolist() for batch in batches[:2]
    ]


def test_grey_and_color_do_not_mix(folder, tmp_path):
    shards.build(tmp_path, [6], channels=1)
    with pytest.raises(UserError, match="grey and colour"):
        opened("", mixture={str(folder): 1, str(tmp_path): 1})


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_kept_keep_their_images(folder, workers):
    """Memory is used again for later batches, but none that anybody still looks into, even at a corner."""
    copies = [batch.images.clone() for batch in take(40, folder, workers=1)]
    with opened(folder, workers=workers) as batches:
        kept = [next(batches).images[1:, :, 2:, ::2] for _ in range(20)]
        for _ in range(10):
            next(batches)
        arrays = [next(batches).images.numpy().transpose(1, 2, 3, 0) for _ in range(10)]
    for got, expected in zip(kept, copies[:20], strict=True):
        assert torch.equal(got, expected[1:, :, 2:, ::2])
    for array, expected in zip(arrays, copies[30:], strict=True):
        assert (array == expected.permute(1, 2, 3, 0).numpy()).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_of_dropped_batches_is_reused(folder, workers):
    with opened(folder, workers=workers, prefetch=2) as batches:
        places = [next(batches).images.data_ptr() for _ in range(30)]
    assert len(set(places)) <= 4


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


def test_exactly_one_of_shards_and_mixture_is_required(folder):
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
