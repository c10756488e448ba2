"""Bytes of shards, wherever they lie: local files, web servers, object stores, the output of a command.

With a cache folder whole shards are copied to the node's own disk first. Several processes share the cache
without a server, by locks on its files alone: who reads a file holds it shared, who downloads or evicts one
holds it exclusively, and locks go with their process however it ends.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shlex
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import webdataset as wds

from ggcn.data import manifest
from ggcn.data.config import DataConfig
from ggcn.errors import Outage, UserError, passing

OPEN_FILES = 64  # per process: a few lanes' blocks; well below the usual limit of 1024
TIMEOUT = 60  # seconds without a byte from a server
LONGEST_PAUSE = 30  # seconds
HOPELESS = range(400, 500)  # HTTP answers that asking again does not change ...
BUSY = (408, 425, 429)  # ... but for these

T = TypeVar("T")


class Remote(NamedTuple):
    """One shard and what its bytes must be."""

    url: str
    """path or URL"""
    bytes: int
    sha256: str


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder; in a `pipe:` command {} stands for the name."""
    if folder.startswith("pipe:") and "{}" in folder:
        return folder.replace("{}", shlex.quote(name))
    return f"{folder.rstrip('/')}/{name}"


def local(url: str) -> str | None:
    """The path of a local file or folder, None for any other URL."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    return None if "://" in url or url.startswith("pipe:") else url


def load_manifest(folder: str, config: DataConfig) -> manifest.Manifest:
    """Reads the manifest of a local or remote folder. Raises UserError when there is none."""
    path = local(folder)
    if path is not None:
        return manifest.load(path)
    url = join(folder, manifest.NAME)
    return manifest.parse(patiently(lambda: _text(url), url, config.retries, config.backoff), url)


def patiently(read: Callable[[], T], url: str, retries: int, backoff: float) -> T:
    """`read()`, again after a pause when it fails, each pause (seconds) twice the last.

    Raises Outage naming `url` when `retries` further attempts fail too, UserError when waiting cannot help.
    """
    for attempt in range(retries + 1):
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            if attempt == retries or _hopeless(error):
                lasting = _hopeless(error) or (isinstance(error, OSError) and not passing(error))
                mend = "restore it, or check the path and the network"
                raise (UserError if lasting else Outage)(f"{url} cannot be read ({error}); {mend}") from None
            time.sleep(min(backoff * 2**attempt, LONGEST_PAUSE))
    raise AssertionError("unreachable")


def _hopeless(error: Exception) -> bool:
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    return code in HOPELESS and code not in BUSY


def _text(url: str) -> str:
    with contextlib.closing(open_stream(url)) as stream:
        return stream.read().decode()


def open_stream(url: str) -> IO[bytes]:
    """A file at a path or URL, to be read from front to back."""
    path = local(url)
    if path is not None:
        return open(path, "rb")
    if url.startswith("pipe:"):
        return wds.gopen(url)
    if url.startswith(("http://", "https://")):
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    store, path = _object_store(url)
    return store.open(path, "rb")


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a remote file. Raises UserError when its server cannot do that."""
    if url.startswith("pipe:"):
        raise UserError(
            f"{url} can only be read from front to back; set data.cache_dir, or raise data.cache_gb"
        )
    if not url.startswith(("http://", "https://")):
        store, path = _object_store(url)
        return store.cat_file(path, offset, offset + size)
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            raise UserError(f"the server of {url} sends whole files only; set data.cache_dir")
        return answer.read()


def _object_store(url: str) -> tuple[Any, str]:
    try:
        import fsspec  # type: ignore[import-untyped]  # comes with torch, which does not promise it

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} needs an fsspec plug-in ({error}); install it, or copy the shards here"
        ) from None


class Reader:
    """Reads pieces of shards, keeping the last few open; one per process, nothing of it survives a fork."""

    def __init__(self, config: DataConfig) -> None:
        self.retries, self.backoff = config.retries, config.backoff
        limit = round(config.cache_gb * 1e9)
        self.cache = Cache(Path(config.cache_dir), limit) if config.cache_dir else None
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: Remote, offset: int, size: int) -> bytes:
        """`size` bytes of a shard from `offset` on. Raises UserError naming it when retries do not help."""
        return patiently(lambda: self._read(shard, offset, size), shard.url, self.retries, self.backoff)

    def close(self) -> None:
        """Closes all files, which gives cached ones free for eviction."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, shard: Remote, offset: int, size: int) -> bytes:
        try:
            file = self._descriptor(shard)
            data = read_range(shard.url, offset, size) if file is None else os.pread(file, size, offset)
            if len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes at {offset}")
            return data
        except OSError:
            self.close()  # a handle may be stale, as after a network file system's restart
            raise

    def _descriptor(self, shard: Remote) -> int | None:
        """An open local file with the shard's bytes, None when there is none."""
        if shard.url in self._open:
            self._open.move_to_end(shard.url)
            return self._open[shard.url]
        file = self._open_file(shard)
        if file is not None:
            self._open[shard.url] = file
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return file

    def _open_file(self, shard: Remote) -> int | None:
        file = self.cache.open(shard) if self.cache else None
        if self.cache and file is None and self._open:
            self.close()  # our own open files may be what fills the cache
            file = self.cache.open(shard)
        path = local(shard.url)
        return os.open(path, os.O_RDONLY) if file is None and path is not None else file


class Cache:
    """A folder of shards, named by their sha256, of at most `limit` bytes; safe for many processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Raises UserError when the folder cannot be made."""
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={folder} cannot be made ({error}); name another folder"
            ) from None

    def open(self, shard: Remote) -> int | None:
        """The shard's file, downloaded if it is not there; held against eviction until it is closed.

        None when files in use leave no room for it. Raises OSError when the download fails or is damaged.
        """
        path = self.folder / shard.sha256
        while shard.bytes <= self.limit:
            file = hold(path, fcntl.LOCK_SH)
            if file is not None:
                os.utime(file)  # when it was last wanted: eviction begins with the oldest
                return file
            if not self._bring(shard, path):
                return None
        return None

    def _bring(self, shard: Remote, path: Path) -> bool:
        """Downloads the shard, or waits while another process does; False when there is no room."""
        part = path.with_suffix(".part")
        file = hold(part, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT)
        if file is None:
            _await(part)
            return True
        try:
            if path.exists():
                return True
            if not self._reserve(file, part, shard.bytes):
                return False
            download(shard, file)
            with self._alone():  # or who counts the files might see it under both names or none
                os.replace(part, path)
            return True
        finally:
            if _is_at(file, part):
                part.unlink()
            os.close(file)

    def _reserve(self, file: int, part: Path, size: int) -> bool:
        """Evicts until `size` bytes are free and gives them to `file`, so that others count them as taken."""
        with self._alone():
            rest = sorted((e for e in self._files() if e[2] != part), key=lambda entry: entry[0])
            free = self.limit - sum(entry[1] for entry in rest)
            for _, bytes_, path in rest:
                if free < size and _evict(path):
                    free += bytes_
            if free >= size:
                os.ftruncate(file, size)
            return free >= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, those of dead downloads included."""
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def hold(path: Path, mode: int, flags: int = os.O_RDONLY) -> int | None:
    """Opens and locks the file at `path`; None when it is missing, or gone once the lock is had, or taken."""
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, mode)
        if _is_at(file, path):
            return file
    os.close(file)
    return None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _await(part: Path) -> None:
    """Returns when nobody writes the file. It asks for a shared lock, as who wrote it keeps one for reading."""
    file = hold(part, fcntl.LOCK_SH)
    if file is not None:
        os.close(file)


def _evict(path: Path) -> bool:
    """Removes a file of the cache unless somebody holds it."""
    if path.name == ".lock" or (file := hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
        return False
    path.unlink(missing_ok=True)
    os.close(file)
    return True


def download(shard: Remote, file: int) -> None:
    """Copies a shard into an open file. Raises OSError unless it arrives with the manifest's sha256."""
    digest = hashlib.sha256()
    with contextlib.closing(open_stream(shard.url)) as stream, os.fdopen(os.dup(file), "wb") as copy:
        while block := stream.read(1 << 20):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != shard.sha256:
        raise OSError("what arrived differs from the manifest's sha256")
    os.fsync(file)
