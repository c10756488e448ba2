"""Shards that are missing or differ from the manifest are found before training."""

# mypy: allow-untyped-defs

import itertools
import os
from pathlib import Path

import pytest
import shard_files as shards
from streams import opened

from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


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
def test_a_shard_lost_during_the_run_is_named(tmp_path, workers, loss):
    shards.build(tmp_path, [8])
    path = tmp_path / "000000.tar"
    batches = opened(tmp_path, 2, workers=workers)
    path.unlink() if loss == "deleted" else os.truncate(path, 100)
    with batches, pytest.raises(UserError, match=r"000000\.tar cannot be read .*; restore it") as caught:
        list(itertools.islice(batches, 10))
    assert "\n" not in str(caught.value)
