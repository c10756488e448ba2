"""Web servers and commands that respond with something else."""

# mypy: allow-untyped-defs

import contextlib
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import shard_files as shards
from streams import config, first, memory_store

from ggcn.data import manifest_file, remote, shard_index
from ggcn.data.remote import RemoteFile
from ggcn.data.shard_cache import ShardCache
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.data.shard_reader import ShardReader
from ggcn.errors import UserError
from ggcn.evaluation import images

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextlib.contextmanager
def answering(folder: Path, answer: Answer) -> Iterator[str]:
    """A web server that sends the manifest and index as they are, and gives `answer` to requests for shards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes()
            (answer if self.path.endswith(".tar") else send_all)(self, data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, code: int, data: bytes, **headers: str) -> None:
    handler.send_response(code)
    for name, value in {"Content_Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        handler.wfile.write(data)


def send_all(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send(handler, 200, data)


def span(handler: BaseHTTPRequestHandler) -> tuple[int, int]:
    start, last = handler.headers["Range"].removeprefix("bytes=").split("-")
    return int(start), int(last) + 1


def too_many(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    start, _ = span(handler)
    send(handler, 206, data[start:])


def too_few(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    start, end = span(handler)
    send(handler, 206, data[start : end - 1])


def elsewhere(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    start, end = span(handler)
    send(handler, 206, data[start:end], Content_Range=f"bytes {start + 1}-{end}/{len(data)}")


def in_parts(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    start, end = span(handler)
    send(handler, 206, data[start:end], Content_Range="\x1b[2Jbytes")


def to_a_file(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send(handler, 302, b"", Location="file:///etc/passwd")


def compressed(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send(handler, 206 if "Range" in handler.headers else 200, zlib.compress(data), Content_Encoding="deflate")


def truncated(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send(handler, 200, data[:-5], Content_Length=str(len(data)))


def endless(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        handler.wfile.write(data)
        while True:
            handler.wfile.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (too_many, r"of \d+ bytes"),
        (too_few, r"of \d+ bytes"),
        (elsewhere, "the server sent 'bytes"),
        (in_parts, "the server sent"),
        (to_a_file, "not allowed"),
        (compressed, "compressed"),
        (send_all, "set data.cache_dir"),
    ],
)
def test_other_bytes_than_requested_are_never_accepted(folder, answer, match):
    with answering(folder, answer) as url, pytest.raises(UserError, match=match) as refused:
        first(url)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (endless, "longer than the manifest's"),
        (truncated, "bytes are missing"),
        (to_a_file, "not allowed"),
        (compressed, "compressed"),
    ],
)
def test_a_download_takes_the_bytes_of_the_manifest_and_no_more(folder, tmp_path, answer, match):
    with answering(folder, answer) as url, pytest.raises(UserError, match=match):
        first(url, cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("[!.]*"))


def test_an_endless_manifest_is_refused(folder, monkeypatch):
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 1 << 20)
    monkeypatch.setitem(globals(), "send_all", endless)
    with answering(folder, send_all) as url, pytest.raises(UserError, match=r"manifest.json is longer than"):
        first(url)
    with pytest.raises(UserError, match=r"is longer than"):
        first("pipe:yes {}", allow_pipe=True, cache_dir="unused")


def test_a_remote_index_is_fetched_once_for_a_node_and_checked(folder, tmp_path):
    with shards.serve(folder) as server:
        expected = first(folder)
        assert first(server.url) == expected
        assert server.paths.count("index.bin") == 1
        for _ in range(3):
            assert first(server.url, cache_dir=str(tmp_path)) == expected
        assert server.paths.count("index.bin") == 2
    with pytest.raises(UserError, match="data.cache_gb"):
        first(memory_store(folder), cache_gb=1e-9)


def test_an_altered_remote_index_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "index.bin").write_bytes(bytes((folder / "index.bin").stat().st_size))
    with shards.serve(copy) as server:
        for cache in ("", str(tmp_path / "cache")):
            with pytest.raises(UserError, match=r"index.bin cannot be read .*sha256"):
                first(server.url, cache_dir=cache)


def test_nothing_runs_a_command_unless_it_is_allowed(folder, tmp_path):
    mark = tmp_path / "ran"
    url = f"pipe:touch {mark}; cat {folder}/{{}}"
    shard = RemoteFile(remote.join_url(url, "000000.tar"), 10240, "0" * 64)
    remote_config = config(url, cache_dir=str(tmp_path / "cache"))
    ways: list[Callable[[], Any]] = [
        lambda: remote.open_stream(shard.url),
        lambda: shard_index.load_manifest(url, remote_config),
        lambda: shard_index.open_index(url, manifest_file.load(folder), remote_config),
        lambda: ShardReader(remote_config).read(shard, 512, 10),
        lambda: ShardCache(tmp_path / "cache", 10**9).open(shard),
        lambda: remote.download(shard, 0),
        lambda: images.read(url, 8, 100, config=remote_config),
        lambda: images.read(url, 8, 100),
        lambda: ShardIndex([ShardFolder(url, manifest_file.load(folder))], remote_config),
    ]
    for way in ways:
        with pytest.raises(
            UserError, match="runs a shell command; if you trust it, set data.allow_pipe=true"
        ) as refused:
            way()
        assert "pipe:touch ***" in str(refused.value)
        assert str(mark) not in str(refused.value)
    assert not mark.exists()
    assert (
        len(images.read(url, 8, 100, config=config(url, cache_dir=remote_config.cache_dir, allow_pipe=True)))
        == 61
    )
    assert mark.exists()


def test_a_command_that_fails_is_shown_by_its_program():
    command = "pipe:KEY=hunter2 false --with hunter2 {}"
    with pytest.raises(UserError, match=r"pipe:false \*\*\* cannot be read .*exit 1") as failed:
        shard_index.load_manifest(command, config(command, allow_pipe=True, cache_dir="unused", retries=0))
    assert "hunter2" not in str(failed.value)


def test_a_command_that_fails_or_never_ends_is_stopped(tmp_path):
    with pytest.raises(OSError, match="exit 3"):
        remote.download(RemoteFile("pipe:printf abc; exit 3", 3, ""), 1, allow_pipe=True)
    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(OSError, match="longer than the manifest's 10"),
    ):
        remote.download(RemoteFile("pipe:yes; sleep 1000", 10, ""), file.fileno(), allow_pipe=True)
