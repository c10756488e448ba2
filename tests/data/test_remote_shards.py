"""Shards on servers, in object stores and from commands give the same batches."""

# mypy: allow-untyped-defs

import itertools
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
from streams import config, opened, remotes, same, take

from ggcn.data.remote import RemoteFile
from ggcn.data.shard_reader import ShardReader
from ggcn.errors import TransientError, UserError


@pytest.mark.parametrize("workers", [0, 2])
def test_a_web_servers_shards_give_the_same_batches(folder, server, workers):
    assert same(take(6, server.url, workers=workers), take(6, folder))


def test_a_server_that_fails_for_a_while_is_retried(folder, server):
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


def test_local_and_remote_shards_are_read_in_one_batch(folder, server):
    local, other, *_ = remotes(folder)
    name = Path(other.url).name
    remote = RemoteFile(f"{server.url}/{name}", (folder / name).stat().st_size, "")
    requests = [(local, 512, 10), (local, 600, 10), (remote, 512, 10), (local, 0, 10)]
    files = {local.url: Path(local.url), remote.url: folder / name}
    expected = [files[shard.url].read_bytes()[at : at + size] for shard, at, size in requests]
    reader = ShardReader(config(server.url))
    assert reader.read_many(requests) == expected
    reader.close()
