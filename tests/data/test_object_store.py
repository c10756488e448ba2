"""Shards and images in an S3 bucket: moto's server, a fake, over real HTTP with the real client."""

# mypy: allow-untyped-defs

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streams import config, first, opened, same, take

from ggcn.cli import make_shards
from ggcn.data import manifest_file, remote
from ggcn.data.shard_reader import ShardReader
from ggcn.errors import UserError

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """The shards in a bucket; address and credentials are in the environment."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (
            ("ACCESS_KEY_ID", "user"),
            ("SECRET_ACCESS_KEY", "x"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir("lab")
        for path in folder.iterdir():
            store.pipe_file(f"lab/faces/{path.name}", path.read_bytes())
        yield "s3://lab"
    server.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_buckets_shards_give_the_same_batches(folder, bucket, workers):
    assert same(take(6, f"{bucket}/faces", workers=workers), take(6, folder))


def test_shards_are_kept_in_the_cache_and_checked(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART_BYTES", 1000)  # several parts, of which the last is shorter
    cached = take(6, f"{bucket}/faces", cache_dir=str(tmp_path), workers=1)
    assert same(cached, take(6, folder))
    s3fs.S3FileSystem().pipe_file("lab/other/000000.tar", bytes(20_000))
    for size, message in ((20_000, "sha256"), (19_999, "longer"), (20_001, "1 of 20001 bytes are missing")):
        source = remote.RemoteFile(f"{bucket}/other/000000.tar", size, "0" * 64)
        with (tmp_path / "copy").open("wb") as file, pytest.raises(OSError, match=message):
            remote.download(source, file.fileno())


def test_what_cannot_be_read_is_one_sentence(bucket):
    with pytest.raises(UserError, match=r"s3://lab/nowhere/manifest.json cannot be read"):
        opened(f"{bucket}/nowhere", retries=10, backoff=100)
    with pytest.raises(UserError, match=r"s3://no-such-bucket/manifest.json cannot be read"):
        opened("s3://no-such-bucket", retries=10, backoff=100)


def test_neighbouring_ranges_are_one_request_and_far_ones_are_not(folder, bucket, monkeypatch):
    requests = []
    read_range = remote.read_range
    monkeypatch.setattr(
        "ggcn.data.shard_reader.read_range",
        lambda url, offset, size: requests.append(size) or read_range(url, offset, size),
    )
    shards = manifest_file.load(folder).shards
    data = [(folder / shard.name).read_bytes() for shard in shards]
    files = [remote.RemoteFile(f"{bucket}/faces/{s.name}", s.bytes, s.sha256) for s in shards]
    wanted = [(0, 512, 100), (0, 1536, 50), (2, 512, 7), (4, 100, 200), (4, 150, 10)]
    reader = ShardReader(config(bucket))
    result = reader.read_many([(files[number], offset, size) for number, offset, size in wanted])
    assert result == [data[number][offset : offset + size] for number, offset, size in wanted]
    assert sorted(requests) == [7, 10, 200, 1074]


def test_images_in_a_bucket_that_a_list_names_become_shards(bucket, tmp_path):
    for number in range(4):
        file = io.BytesIO()
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(file, "PNG")
        s3fs.S3FileSystem().pipe_file(f"lab/images/{number}.png", file.getvalue())
    urls = [f"s3://lab/images/{number}.png" for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join([*urls, "s3://lab/images/gone.png"]), encoding="utf-8")
    make_shards.main([str(tmp_path / "list.txt"), str(tmp_path / "out"), "--size", "16", "--workers", "2"])
    result = manifest_file.load(tmp_path / "out")
    assert (result.samples, result.rejected) == (4, 1)
    assert len(first(tmp_path / "out")) == 5
