"""Servers, object stores and commands that misbehave, and the limits of the system."""

# mypy: allow-untyped-defs

import asyncio
import concurrent.futures
import contextlib
import errno
import http.client
import itertools
import os
import random
import resource
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import shard_files as shards
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from ggcn.config.data import DataConfig
from ggcn.data import manifest_file, remote, retries, shard_index, stream
from ggcn.data.remote import RemoteFile
from ggcn.data.shard_cache import ShardCache
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.data.shard_reader import ShardReader
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.distributed.lanes import Lanes
from ggcn.errors import TransientError, UserError
from ggcn.evaluation import images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    shards.build(path, [13, 20])
    return path


def config(url: Any, **settings: Any) -> DataConfig:
    return DataConfig(**{"shards": str(url), "workers": 0, "retries": 2, "backoff": 0.001, **settings})


def first(url: Any, **settings: Any) -> list[int]:
    """The first batch's samples and the sum of its pixels."""
    with stream.build(config(url, **settings), Lanes(4), 1, 8) as batches:
        batch = next(batches)
        return [*batch.ids.tolist(), int(batch.images.sum())]


# web servers that do something else

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextlib.contextmanager
def answering(folder: Path, answer: Answer) -> Iterator[str]:
    """A web server that sends the manifest and index as they are, and gives `answer` to requests for shards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes()
            (answer if self.path.endswith(".tar") else whole)(self, data)

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


def whole(handler: BaseHTTPRequestHandler, data: bytes) -> None:
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


def cut_off(handler: BaseHTTPRequestHandler, data: bytes) -> None:
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
        (whole, "set data.cache_dir"),
    ],
)
def test_other_bytes_than_were_asked_for_are_never_taken(folder, answer, match):
    with answering(folder, answer) as url, pytest.raises(UserError, match=match) as refused:
        first(url)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (endless, "longer than the manifest's"),
        (cut_off, "bytes are missing"),
        (to_a_file, "not allowed"),
        (compressed, "compressed"),
    ],
)
def test_a_download_takes_what_the_manifest_says_and_no_more(folder, tmp_path, answer, match):
    with answering(folder, answer) as url, pytest.raises(UserError, match=match):
        first(url, cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("[!.]*"))


def test_a_manifest_without_an_end_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 1 << 20)
    monkeypatch.setitem(globals(), "whole", endless)
    with answering(folder, whole) as url, pytest.raises(UserError, match=r"manifest.json is longer than"):
        first(url)
    with pytest.raises(UserError, match=r"is longer than"):
        first("pipe:yes {}", allow_pipe=True, cache_dir="unused")


def test_a_remote_index_is_fetched_once_for_a_node_and_checked(folder, tmp_path):
    with shards.serve(folder) as server:
        wanted = first(folder)
        assert first(server.url) == wanted
        assert server.paths.count("index.bin") == 1
        for _ in range(3):
            assert first(server.url, cache_dir=str(tmp_path)) == wanted
        assert server.paths.count("index.bin") == 2
    with pytest.raises(UserError, match="data.cache_gb"):
        first(server_less(folder), cache_gb=1e-9)


def server_less(folder: Path) -> str:
    """The shards in fsspec's memory."""
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/set/{path.name}", path.read_bytes())
    return "memory://set"


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


# commands


def test_no_way_of_reading_runs_a_command_without_leave(folder, tmp_path):
    mark = tmp_path / "ran"
    url = f"pipe:touch {mark}; cat {folder}/{{}}"
    shard = RemoteFile(remote.join_url(url, "000000.tar"), 10240, "0" * 64)
    asked = config(url, cache_dir=str(tmp_path / "cache"))
    ways: list[Callable[[], Any]] = [
        lambda: remote.open_stream(shard.url),
        lambda: shard_index.load_manifest(url, asked),
        lambda: shard_index.open_index(url, manifest_file.load(folder), asked),
        lambda: ShardReader(asked).read(shard, 512, 10),
        lambda: ShardCache(tmp_path / "cache", 10**9).open(shard),
        lambda: remote.download(shard, 0),
        lambda: images.read(url, 8, 100, config=asked),
        lambda: images.read(url, 8, 100),
        lambda: ShardIndex([ShardFolder(url, manifest_file.load(folder))], asked),
    ]
    for way in ways:
        with pytest.raises(
            UserError, match="runs a shell command; if you trust it, set data.allow_pipe=true"
        ) as refused:
            way()
        assert "pipe:touch ***" in str(refused.value)
        assert str(mark) not in str(refused.value)
    assert not mark.exists()
    assert len(images.read(url, 8, 100, config=config(url, cache_dir=asked.cache_dir, allow_pipe=True))) == 33
    assert mark.exists()


def test_a_command_that_fails_is_shown_by_its_program():
    command = "pipe:KEY=hunter2 false --with hunter2 {}"
    with pytest.raises(UserError, match=r"pipe:false \*\*\* cannot be read .*exit 1") as failed:
        shard_index.load_manifest(command, config(command, allow_pipe=True, cache_dir="unused", retries=0))
    assert "hunter2" not in str(failed.value)


def test_a_command_that_fails_or_goes_on_for_ever_is_ended(tmp_path):
    with pytest.raises(OSError, match="exit 3"):
        remote.download(RemoteFile("pipe:printf abc; exit 3", 3, ""), 1, allow_pipe=True)
    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(OSError, match="longer than the manifest's 10"),
    ):
        remote.download(RemoteFile("pipe:yes; sleep 1000", 10, ""), file.fileno(), allow_pipe=True)


# which errors may pass


def named(name: str, base: type[Exception] = Exception, **fields: Any) -> Exception:
    """An error of a library that is not installed here: kinds are told by names, statuses and answers."""
    return type(name, (base,), fields)("it says so")


def answer(status: int, code: str = "", **headers: str) -> dict[str, Any]:
    """What botocore's ClientError has in `response`."""
    return {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}


TRANSIENT = [
    named("EndpointConnectionError"),
    named("ClientError", response=answer(503, "SlowDown")),
    named("ClientError", response=answer(400, "RequestTimeout")),
    named("ClientResponseError", status=429),
    named("ServerDisconnectedError"),
    named("ServiceUnavailable", code=503),
    named("HttpResponseError", status_code=500),
    asyncio.TimeoutError(),
    concurrent.futures.TimeoutError(),
    http.client.IncompleteRead(b"", 5),
    ssl.SSLError(1, "bad record"),
    zlib.error("incorrect header"),
    RuntimeError("Session is closed"),
    EOFError(),
    ConnectionResetError(),
    OSError(errno.ESTALE, "stale"),
]
PERMANENT_STATUSES = [
    named("NoCredentialsError"),
    named("DefaultCredentialsError"),
    named("ClientError", response=answer(403, "AccessDenied")),
    named("ClientError", response=answer(404, "NoSuchKey")),
    named("ResourceNotFoundError", status_code=404),
    named("ClientAuthenticationError"),
    named("Forbidden", code=403),
    FileNotFoundError("x"),
    PermissionError("x"),
    NotADirectoryError("x"),
    OSError(errno.ENOSPC, "full"),
    ssl.SSLCertVerificationError(1, "self-signed"),
    ValueError("no such bucket name"),
    NotImplementedError(),
    http.client.InvalidURL("no port"),
]


class Failing(MemoryFileSystem):
    """fsspec's memory, whose next reads of shards fail."""

    protocol = "failing"
    store = MemoryFileSystem.store
    error: Exception = OSError()
    left = 0
    asked = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("failing://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
        Failing.asked += 1
        Failing.left -= 1
        if Failing.left >= 0:
            raise Failing.error
        data: bytes = super().cat_file(path, start, end, **rest)
        return data


@pytest.fixture
def failing(folder: Path) -> str:
    fsspec.register_implementation("failing", Failing, clobber=True)
    server_less(folder)
    Failing.asked = 0
    return "failing://set"


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_a_store_that_fails_for_a_while_is_asked_again_whatever_it_raises(folder, failing, error):
    Failing.error, Failing.left = error, 2
    assert first(failing) == first(folder)
    Failing.error, Failing.left, Failing.asked = error, 10**9, 0
    with pytest.raises(TransientError, match=r"failing://set/00000\d.tar cannot be read \(.+\); .*network"):
        first(failing)
    assert Failing.asked == 3


@pytest.mark.parametrize("error", PERMANENT_STATUSES, ids=lambda error: type(error).__name__)
def test_what_cannot_pass_is_not_tried_again(failing, error):
    Failing.error, Failing.left = error, 10**9
    with pytest.raises(UserError, match=r"failing://set/00000\d.tar cannot be read") as refused:
        first(failing)
    assert not isinstance(refused.value, TransientError)
    assert Failing.asked == 1


def test_a_fault_of_the_program_keeps_its_traceback(failing):
    Failing.error, Failing.left = TypeError("no such argument"), 10**9
    with pytest.raises(TypeError):
        first(failing)


def test_what_a_server_says_cannot_pass_for_something_else(failing):
    Failing.error, Failing.left = OSError("\x1b[2J\r\nerror: all is well\u202e" + "x" * 10**6), 10**9
    with pytest.raises(UserError) as refused:
        first(failing)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 700


# pauses


def paused(monkeypatch: pytest.MonkeyPatch, error: Exception, count: int, backoff: float) -> list[float]:
    """The pauses, in seconds, before a read that keeps failing is given up."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def read() -> None:
        raise error

    with pytest.raises(UserError):
        retries.with_retries(read, "url", count, backoff)
    return pauses


def test_pauses_double_differ_between_ranks_and_leave_every_random_stream_alone(monkeypatch):
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    error = ConnectionResetError()
    one, other = paused(monkeypatch, error, 5, 0.5), paused(monkeypatch, error, 5, 0.5)
    assert one != other
    assert all(0.5 <= pause / (0.5 * 2**n) <= 1.5 for n, pause in enumerate(one))
    assert max(paused(monkeypatch, error, 3000, 0.5)) == retries.MAX_DELAY_S
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert states == after


def test_a_server_that_names_a_short_pause_gets_it(monkeypatch):
    for headers in ({"Retry-After": "7"}, {"retry-after": "7"}):
        assert paused(monkeypatch, named("Busy", status=503, headers=headers), 1, 0.01) == [7]
    assert paused(
        monkeypatch, named("ClientError", response=answer(503, **{"retry-after": "7"})), 1, 0.01
    ) == [7]
    for useless in ("86400", "soon", "-5", "9" * 400, ""):
        (pause,) = paused(monkeypatch, named("Busy", status=503, headers={"Retry-After": useless}), 1, 0.01)
        assert pause < 1


# limits of the system

FEW_FILES = """
import resource, sys
from ggcn.config.data import DataConfig
from ggcn.data import manifest_file
from ggcn.data.remote import RemoteFile
from ggcn.data.shard_reader import ShardReader
from pathlib import Path
folder = Path(sys.argv[1])
shards = [RemoteFile(str(folder / s.name), s.bytes, s.sha256) for s in manifest_file.load(folder).shards]
reader = ShardReader(DataConfig(retries=1, backoff=0.001))
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
print(sum(len(reader.read(shard, 512, 10)) for shard in shards))
"""


def few_files(folder: Path, most: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", FEW_FILES, str(folder), str(most)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_reader_lives_with_few_open_files_and_names_the_limit_when_there_are_none(tmp_path):
    shards.build(tmp_path, [1] * 40)
    assert few_files(tmp_path, 20).stdout == "400\n"
    said = few_files(tmp_path, 3).stderr.splitlines()[-1]
    assert "ulimit -n" in said
    assert "data.workers" in said


def test_a_loader_that_may_not_open_more_files_names_the_limit(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    filler = [os.dup(0) for _ in range(5)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 8, hard))
    try:
        with pytest.raises(UserError, match=r"ulimit -n.*data\.workers"):
            list(itertools.islice(stream.build(config(folder, workers=2), Lanes(4), 1, 8), 3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in filler:
            os.close(file)


@pytest.mark.parametrize(
    ("text", "limit"), [("No space left on device", "/dev/shm"), ("ancdata", "ulimit -n")]
)
def test_what_torch_says_of_full_shared_memory_becomes_a_sentence(folder, text, limit):
    def worker() -> Iterator[Any]:
        raise RuntimeError(f"Caught OSError in worker 0: received 0 items of {text}")
        yield

    with stream.build(config(folder), Lanes(4), 1, 8) as batches:
        batches._batches = worker()
        with pytest.raises(UserError, match=rf"{limit}.*data\.workers or data\.prefetch"):
            next(batches)


def test_slots_that_no_memory_holds_are_refused_in_a_sentence(folder, monkeypatch):
    for impossible in (1 << 48, 1 << 70):
        monkeypatch.setattr(
            stream,
            "SharedBuffers",
            lambda workers, each, shape, n=impossible: SharedBuffers(workers, n, shape),
        )
        with pytest.raises(UserError, match=r"no memory left.*data\.prefetch"):
            stream.build(config(folder), Lanes(4), 1, 8)
