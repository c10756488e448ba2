"""Access to files wherever they are: local files, web servers, object stores, the output of a command."""

import contextlib
import hashlib
import http.client
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from typing import IO, Any, NamedTuple

from ggcn.errors import UserError
from ggcn.redact import shard_folder

TIMEOUT = 60  # seconds without a byte from a server
LONGEST_MANIFEST = 64 << 20  # bytes; 100,000 shards take 15 MB


class Remote(NamedTuple):
    """One shard and what its bytes must be."""

    url: str
    """path or URL"""
    bytes: int
    sha256: str


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder; in a `pipe:` command {} stands for the name, or it follows a slash."""
    if folder.startswith("pipe:"):
        name = shlex.quote(name)
        if "{}" in folder:
            return folder.replace("{}", name)
    return f"{folder.rstrip('/')}/{name}"


def local(url: str) -> str | None:
    """The path of a local file or folder, None for any other URL."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    return None if "://" in url or url.startswith("pipe:") else url


def read_manifest_text(url: str, allow_pipe: bool) -> bytes:
    """A manifest's text. Raises UserError when it has no end, OSError when it was cut off."""
    with contextlib.closing(open_stream(url, allow_pipe)) as stream:
        pieces, left = [], LONGEST_MANIFEST + 1
        while left and (piece := stream.read(min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
        if left == 0:
            raise UserError(
                f"{shard_folder(url)} is longer than {LONGEST_MANIFEST} bytes; that is no manifest of shards"
            )
        if getattr(stream, "length", None):  # a web server announced more
            raise OSError(f"{stream.length} bytes are missing")  # type: ignore[attr-defined]
        return b"".join(pieces)


def open_stream(url: str, allow_pipe: bool = False) -> IO[bytes]:
    """A file at a path or URL, to be read from front to back.

    Raises UserError for a `pipe:` command, which could be anything, unless `allow_pipe`.
    """
    path = local(url)
    if path is not None:
        return open(path, "rb")
    if url.startswith("pipe:"):
        if not allow_pipe:
            raise UserError(
                f"{shard_folder(url)} runs a shell command; if you trust it, set data.allow_pipe=true"
            )
        return Command(url.removeprefix("pipe:"))  # type: ignore[return-value]
    if url.startswith(("http://", "https://")):
        return _as_it_is(urllib.request.urlopen(url, timeout=TIMEOUT), url)
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
        """Ends the command, if it is still at work."""
        self._output.close()
        self._process.kill()
        self._process.wait()


def _as_it_is(answer: Any, url: str) -> Any:
    """A web server's answer. Raises UserError when it is compressed on the way: sizes and hashes would differ."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        answer.close()
        raise UserError(
            f"the server of {url} sends it compressed ({encoding!r:.40}); turn that off for shards"
        )
    return answer


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a remote file.

    Raises UserError when its server cannot do that, OSError when it answers with other bytes.
    """
    if url.startswith("pipe:"):
        raise UserError(
            f"{shard_folder(url)} can only be read from front to back; set data.cache_dir, or raise data.cache_gb"
        )
    if not url.startswith(("http://", "https://")):
        store, path = _object_store(url)
        return store.cat_file(path, offset, offset + size)
    wanted = f"bytes {offset}-{offset + size - 1}/"
    request = urllib.request.Request(url, headers={"Range": wanted.replace(" ", "=").rstrip("/")})
    with _as_it_is(urllib.request.urlopen(request, timeout=TIMEOUT), url) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            raise UserError(f"the server of {url} sends whole files only; set data.cache_dir")
        span = answer.headers.get("Content-Range", wanted)
        if not span.startswith(wanted):
            raise OSError(f"the server sent {span!r:.60} instead of {wanted!r}")
        return answer.read(size + 1)  # one more would tell that it sends too many


def _object_store(url: str) -> tuple[Any, str]:
    try:
        import fsspec  # type: ignore[import-untyped]  # comes with torch, which does not promise it

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} needs an fsspec plug-in ({error}); install it, or copy the shards here"
        ) from None


def download(shard: Remote, file: int, allow_pipe: bool = False) -> None:
    """Copies a shard into an open file. Raises OSError unless it arrives with the manifest's bytes and sha256."""
    digest, left = hashlib.sha256(), shard.bytes
    with (
        contextlib.closing(open_stream(shard.url, allow_pipe)) as stream,
        os.fdopen(os.dup(file), "wb") as copy,
    ):
        while block := stream.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                raise OSError(f"it is longer than the manifest's {shard.bytes} bytes")
            digest.update(block)
            copy.write(block)
    if left:
        raise OSError(f"{left} of {shard.bytes} bytes are missing")
    if digest.hexdigest() != shard.sha256:
        raise OSError("what arrived differs from the manifest's sha256")
    os.fsync(file)
