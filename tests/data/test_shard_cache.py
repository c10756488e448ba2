"""The cache of a node is shared by its ranks and never exceeds its size."""

# mypy: allow-untyped-defs

import collections
import concurrent.futures
import errno
import itertools
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import shard_files as shards
from streams import opened, pixels, remotes, same, take

from ggcn import locks
from ggcn.config.data import DataConfig
from ggcn.data import manifest_file, remote, shard_cache
from ggcn.data.remote import RemoteFile
from ggcn.data.shard_cache import ShardCache
from ggcn.data.shard_reader import ShardReader
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError


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


def test_a_shard_that_was_altered_in_transit_is_refused(folder, tmp_path):
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
            assert (pixels(batch)[0] == shards.noise_image(ids[-1])).all()
            most = max(most, size_of(cache))
    return ids, most


def size_of(cache: Path) -> int:
    files = ShardCache(cache, 0)
    with files._exclusive():
        return sum(size for _, size, _ in files._files())


def test_ranks_share_a_small_cache_without_exceeding_it_or_losing_a_byte(folder, tmp_path):
    """Room for two or three of five shards: each rank evicts what the others may want next."""
    limit = 2.5 * max(shard.bytes for shard in manifest_file.load(folder).shards)
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


def read_all(files: list[RemoteFile], config: DataConfig) -> bool:
    """A rank: whether every shard reads as it should."""
    reader = ShardReader(config)
    return all(reader.read(file, 0, file.bytes) == Path(file.url).read_bytes() for file in files * 5)


@pytest.mark.parametrize("room", [2.5, 10])
def test_a_cache_folder_without_locks_is_shared_too(folder, tmp_path, monkeypatch, caplog, room):
    """Where all shards fit, each is downloaded once; where few do, what is read and evicted at once stays whole."""
    without_locks(monkeypatch)
    files, cache = remotes(folder), tmp_path / "cache"
    limit = room * max(file.bytes for file in files)
    config = DataConfig(cache_dir=str(cache), cache_gb=limit / 1e9, retries=0)
    downloaded, download = tmp_path / "downloaded", remote.download

    def noted(*args: Any) -> None:
        with downloaded.open("a") as lines:
            lines.write("one\n")
        download(*args)

    monkeypatch.setattr(shard_cache, "download", noted)
    ShardReader(config)
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
    reader = ShardReader(DataConfig(cache_dir=str(tmp_path / "cache"), retries=0))
    opened = os.open

    def refused(path: Any, *args: Any) -> int:
        if str(path).endswith(".part"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UserError, match=f"data.cache_dir={tmp_path}/cache cannot be used"):
        reader.read(file, 0, 10)


def held(cache: ShardCache, shard: RemoteFile) -> int:
    descriptor = cache.open(shard)
    assert descriptor is not None
    return descriptor


def contents(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.glob("[!.]*")}


def test_eviction_removes_the_least_recently_used_and_never_one_in_use(tmp_path):
    shards.build(tmp_path / "data", [4, 4, 4, 4])
    files = remotes(tmp_path / "data")
    cache = ShardCache(tmp_path / "cache", 3 * files[0].bytes)
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


def test_a_killed_download_does_not_block_or_take_space(tmp_path):
    shards.build(tmp_path / "data", [4, 4])
    files = remotes(tmp_path / "data")
    cache = ShardCache(tmp_path / "cache", files[0].bytes)
    for file in (files[0], RemoteFile("", 1, "0" * 64)):
        (cache.folder / f"{file.sha256}.part").write_bytes(bytes(file.bytes))
    descriptor = held(cache, files[0])
    assert os.pread(descriptor, files[0].bytes, 0) == Path(files[0].url).read_bytes()
    assert contents(cache) == {files[0].sha256}
    os.close(descriptor)


def test_a_cache_too_small_for_a_shard_is_bypassed(folder, server, tmp_path):
    assert same(take(6, server.url, cache_dir=str(tmp_path), cache_gb=1e-6), take(6, folder))


def test_a_cache_that_cannot_be_made_is_refused(folder):
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"data.cache_dir=/dev/null/x cannot be made"):
            take(1, folder, cache_dir="/dev/null/x", workers=workers)
