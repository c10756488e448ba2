"""Access to files wherever they are: local files, web servers, object stores, the output of a command."""

import contextlib
import hashlib
import http.client
import itertools
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

from ggcn.errors import UserError
from ggcn.redact import shard_folder

TIMEOUT_S = 60  # without a byte from a server
PART_BYTES = 8 << 20
"""of an object that is downloaded"""
PARTS_AHEAD = 4
"""parts of an object that are requested at once"""
MAX_MANIFEST_BYTES = 64 << 20  # 100,000 shards take 15 MB


class RemoteFile(NamedTuple):
    """A file of a folder of shards, and what its bytes must be."""

    url: str
    """path or URL"""
    bytes: int
    sha256: str


def join_url(folder: str, name: str) -> str:
    """Path or URL of a file in a folder; in a `pipe:` command {} stands for the name, or it follows a slash."""
    if folder.startswith("pipe:"):
        name = shlex.quote(name)
        if "{}" in folder:
            return folder.replace("{}", name)
    return f"{folder.rstrip('/')}/{name}"


def local_path(url: str) -> str | None:
    """The path of a local file or folder, None for any other URL."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    return None if "://" in url or url.startswith("pipe:") else url


def is_object_store(url: str) -> bool:
    """Whether a URL is read through fsspec: it is neither local nor a command nor on a web server."""
    return local_path(url) is None and not url.startswith(("pipe:", "http://", "https://"))


def read_manifest_text(url: str, allow_pipe: bool) -> bytes:
    """The bytes of a manifest. Raises UserError when it is endless, OSError when it was cut off."""
    return read_whole(url, MAX_MANIFEST_BYTES, "no manifest of shards", allow_pipe)


def read_whole(url: str, most: int, otherwise: str = "no image", allow_pipe: bool = False) -> bytes:
    """All bytes of a file. Raises UserError when it has more than `most`: that is `otherwise`; OSError when it was
    cut off."""
    with contextlib.closing(open_stream(url, allow_pipe)) as stream:
        chunks, left = [], most + 1
        while left and (chunk := stream.read(min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
        if left == 0:
            raise UserError(f"{shard_folder(url)} is longer than {most} bytes; that is {otherwise}")
        if getattr(stream, "length", None):  # a web server announced more
            raise OSError(f"{stream.length} bytes are missing")  # type: ignore[attr-defined]
        return b"".join(chunks)


def open_stream(url: str, allow_pipe: bool = False) -> IO[bytes]:
    """Opens a file at a path or URL for sequential reading.

    Raises UserError for a `pipe:` command, which could be anything, unless `allow_pipe`.
    """
    path = local_path(url)
    if path is not None:
        return open(path, "rb")
    if url.startswith("pipe:"):
        if not allow_pipe:
            raise UserError(
                f"{shard_folder(url)} runs a shell command; if you trust it, set data.allow_pipe=true"
            )
        return Command(url.removeprefix("pipe:"))  # type: ignore[return-value]
    if url.startswith(("http://", "https://")):
        return _uncompressed(urllib.request.urlopen(url, timeout=TIMEOUT_S), url)
    store, path = _object_store(url)
    return store.open(path, "rb")


class Command:
    """The output of a shell command."""

    def __init__(self, command: str) -> None:
        self._shown = shard_folder(f"pipe:{command}")
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises OSError when the command fails."""
        data = self._output.read(size)
        if not data and self._process.wait():
            raise OSError(f"{self._shown}: exit {self._process.returncode}")
        return data

    def close(self) -> None:
        """Ends the command, if it is still running."""
        self._output.close()
        self._process.kill()
        self._process.wait()


def _uncompressed(response: Any, url: str) -> Any:
    """A web server's response. Raises UserError when it is compressed in transit: sizes and hashes would differ."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        response.close()
        raise UserError(
            f"the server of {url} sends it compressed ({encoding!r:.40}); turn that off for shards"
        )
    return response


def read_range(url: str, offset: int, size: int) -> bytes:
    """The `size` bytes from `offset` of a remote file.

    Raises UserError when its server cannot do that, OSError when it responds with other bytes.
    """
    if url.startswith("pipe:"):
        raise UserError(
            f"{shard_folder(url)} can only be read from front to back; set data.cache_dir, or raise data.cache_gb"
        )
    if is_object_store(url):
        store, path = _object_store(url)
        return store.cat_file(path, start=offset, end=offset + size)
    expected = f"bytes {offset}-{offset + size - 1}/"
    request = urllib.request.Request(url, headers={"Range": expected.replace(" ", "=").rstrip("/")})
    with _uncompressed(urllib.request.urlopen(request, timeout=TIMEOUT_S), url) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            raise UserError(f"the server of {url} sends whole files only; set data.cache_dir")
        span = response.headers.get("Content-Range", expected)
        if not span.startswith(expected):
            raise OSError(f"the server sent {span!r:.60} instead of {expected!r}")
        return response.read(size + 1)  # one more byte shows that it sends too many


def _object_store(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError without the plug-in for it.

    fsspec keeps one for each process and store, hence one pool of connections; credentials are the environment's.
    """
    try:
        import fsspec  # comes with torch, which does not promise it

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = " (pip install 'ggcn[s3]')" if url.startswith("s3://") else ""
        raise UserError(
            f"{url} needs an fsspec plug-in{extra} ({error}); install it, or copy the shards here"
        ) from None


def download(source: RemoteFile, file: int, allow_pipe: bool = False) -> None:
    """Copies a remote file into an open one. Raises OSError unless its size and sha256 are the manifest's."""
    digest, left = hashlib.sha256(), source.bytes
    with contextlib.closing(_blocks(source, allow_pipe)) as blocks, os.fdopen(os.dup(file), "wb") as copy:
        for block in blocks:
            left -= len(block)
            if left < 0:
                raise OSError(f"it is longer than the manifest's {source.bytes} bytes")
            digest.update(block)
            copy.write(block)
    if left:
        raise OSError(f"{left} of {source.bytes} bytes are missing")
    if digest.hexdigest() != source.sha256:
        raise OSError("the received bytes differ from the manifest's sha256")
    os.fsync(file)


def _blocks(source: RemoteFile, allow_pipe: bool) -> Generator[bytes, None, None]:
    """The bytes of a file, up to one more than the manifest's: of an object store several ranges at once."""
    if is_object_store(source.url) and source.bytes > PART_BYTES:
        yield from _parts(source)
        return
    with contextlib.closing(open_stream(source.url, allow_pipe)) as stream:
        left = source.bytes
        while left >= 0 and (block := stream.read(min(1 << 20, left + 1))):
            left -= len(block)
            yield block


def _parts(source: RemoteFile) -> Generator[bytes, None, None]:
    """The parts of an object, of which a few are requested ahead."""
    store, path = _object_store(source.url)
    if (size := store.info(path)["size"]) > source.bytes:
        raise OSError(f"it is longer than the manifest's {source.bytes} bytes")
    with ThreadPoolExecutor(PARTS_AHEAD) as pool:
        starts, parts = iter(range(0, size, PART_BYTES)), deque[Future[bytes]]()
        try:
            for start in itertools.chain(starts, [None] * PARTS_AHEAD):
                if start is not None:
                    parts.append(pool.submit(read_range, source.url, start, min(PART_BYTES, size - start)))
                if parts and (start is None or len(parts) == PARTS_AHEAD):
                    yield parts.popleft().result()
        finally:
            for part in parts:
                part.cancel()
