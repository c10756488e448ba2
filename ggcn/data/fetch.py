"""Bytes of shards, wherever they lie: local files, web servers, object stores, the output of a command.

With a cache folder whole shards are copied to the node's own disk first. Several processes share the cache
without a server, by locks on its files alone: who reads a file holds it shared, who downloads or evicts one
holds it exclusively, and locks go with their process however it ends. Where the cache's file system has none, one
process downloads a shard all the same, and what is evicted while somebody reads it stays readable, for it is open.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import random
import re
import resource
import shlex
import ssl
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from ggcn import locks
from ggcn.config.data import DataConfig
from ggcn.data import manifest
from ggcn.data.manifest import Manifest
from ggcn.errors import PERMANENT_ERRNOS, TransientError, UserError, is_transient
from ggcn.redact import shard_folder

OPEN_FILES = 64  # per process: a few lanes' blocks; well below the usual limit of 1024
TIMEOUT = 60  # seconds without a byte from a server
LONGEST_PAUSE = 30  # seconds
LOCK = ".lock"
HOPELESS = range(300, 500)  # HTTP answers that asking again does not change ...
BUSY = (408, 425, 429)  # ... but for these
MISTAKES = (ValueError, LookupError, NotImplementedError, ImportError, http.client.InvalidURL)
REFUSALS = re.compile("credential|authentica|unauthorized|forbidden|denied|nosuch|notfound", re.IGNORECASE)
PASSING_CODES = re.compile("timeout|throttl|slowdown|toomany|busy", re.IGNORECASE)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
MOST_INDICES = 10**9  # bytes of other data sets' indices that a node keeps
LONGEST_MANIFEST = 64 << 20  # bytes; 100,000 shards take 15 MB

T = TypeVar("T")


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


def load_manifest(folder: str, config: DataConfig) -> Manifest:
    """Reads the manifest of a local or remote folder. Raises UserError when there is none."""
    path = local(folder)
    if path is not None:
        return manifest.load(path)
    url = join(folder, manifest.NAME)
    text = with_retries(lambda: _text(url, config.allow_pipe), url, config.retries, config.backoff)
    return manifest.parse(text, shard_folder(url))


def open_index(folder: str, data: Manifest, config: DataConfig) -> np.ndarray:
    """Where every sample of a folder lies: its index, mapped into memory, PLACE [samples].

    A remote index is kept below data.cache_dir, once for all processes of a node and beside the limit for
    shards, which it would take up for the whole run. Without a cache, each process that calls this keeps a
    copy of its own in the temporary folder.
    Raises UserError when it is missing or differs from the manifest.
    """
    if local(folder) is not None or data.index is None:
        return manifest.open_index(data)
    index = Remote(join(folder, data.index.name), data.index.bytes, data.index.sha256)
    file = with_retries(lambda: _fetched(index, config), index.url, config.retries, config.backoff)
    try:
        return manifest.map_index(
            file, data.samples, shard_folder(index.url)
        )  # which keeps the file open, hence in the cache
    finally:
        os.close(file)


def _fetched(file: Remote, config: DataConfig) -> int:
    """An open local copy of a remote file."""
    if file.bytes > config.cache_gb * 1e9:
        raise UserError(
            f"{shard_folder(file.url)} has {file.bytes} bytes, more than data.cache_gb; raise that"
        )
    if config.cache_dir:
        cache = Cache(Path(config.cache_dir) / ".index", file.bytes + MOST_INDICES, config.allow_pipe)
        if (cached := cache.open(file)) is not None:
            return cached
    with tempfile.TemporaryFile() as copy:
        download(file, copy.fileno(), config.allow_pipe)
        return os.dup(copy.fileno())


def with_retries(read: Callable[[], T], url: str, retries: int, backoff: float) -> T:
    """`read()`, again after a pause when it fails, each pause (seconds) about twice the last.

    Which errors may pass is decided by their kind, since object stores raise many that are no OSError.
    Raises Outage naming `url` when `retries` further attempts fail too, UserError when waiting cannot help.
    """
    for attempt in range(retries + 1):
        try:
            return read()
        except (UserError, MemoryError, TypeError, AttributeError, NameError, AssertionError):
            raise  # already a sentence, or a fault of the program, whose traceback is wanted
        except Exception as error:
            hopeless, inner = _hopeless(error), _reason(error)
            if attempt == retries or hopeless:
                lasting = _errno(inner) in (*PERMANENT_ERRNOS, *TOO_MANY_FILES)
                text = f"{shard_folder(url)} cannot be read ({said(error)}); {_mend(inner)}"
                raise (UserError if hopeless or lasting else TransientError)(text) from None
            time.sleep(pause(error, backoff * 2 ** min(attempt, 30)))
    raise AssertionError("unreachable")


def pause(error: Exception, seconds: float) -> float:
    """How long to wait after a failed read, in seconds: half to one and a half times `seconds`, 30 at most.

    Ranks that failed together do not come back together. A server may ask for more, within that limit. The
    random numbers are the system's, so that no draw of a run depends on a failure.
    """
    asked = _retry_after(error)
    jittered = seconds * random.SystemRandom().uniform(0.5, 1.5)
    return min(max(jittered, asked if asked <= LONGEST_PAUSE else 0), LONGEST_PAUSE)


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks for, 0 if it does not say."""
    headers = getattr(error, "headers", None) or _answer(error).get("HTTPHeaders", {})
    try:
        text = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    except AttributeError:
        return 0
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0


def _answer(error: Exception) -> dict[str, Any]:
    """What a botocore ClientError says of the server's answer."""
    response = getattr(error, "response", None)
    answer = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return answer if isinstance(answer, dict) else {}


def _status(error: Exception) -> int | None:
    """The HTTP status that an error stands for, as the libraries of the common object stores name it."""
    names = ("code", "status", "status_code")
    found = [_answer(error).get("HTTPStatusCode"), *(getattr(error, name, None) for name in names)]
    return next((int(value) for value in found if isinstance(value, int) and 100 <= value < 600), None)


def _reason(error: Exception) -> Exception:
    """What the connection raised, where urllib wraps that."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, Exception) else error


def _errno(error: Exception) -> int | None:
    """The system's number of an error; those of TLS are of another list."""
    return error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None


def _hopeless(error: Exception) -> bool:
    """Whether asking again cannot help: what is missing, forbidden, or was never a right question."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if PASSING_CODES.search(str(code)):
        return False  # S3 calls these 400, a faulty request
    status = _status(error)
    if status is not None:
        return status in HOPELESS and status not in BUSY
    error = _reason(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    if isinstance(error, OSError):
        missing = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        return isinstance(error, missing) or _errno(error) in PERMANENT_ERRNOS
    mistaken = isinstance(error, MISTAKES) and not isinstance(error, UnicodeError)
    return mistaken or REFUSALS.search(type(error).__name__) is not None


def said(error: Exception) -> str:
    """An error's text for a terminal: without what a server may have put into it to look like something else."""
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    text = text.strip(": ") or type(error).__name__
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:500])
    return shown + ("..." if len(text) > 500 else "")


def _mend(error: Exception) -> str:
    if isinstance(error, OSError) and _errno(error) in TOO_MANY_FILES:
        return limits(error)
    if _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        return (
            "free some space there, lower data.cache_gb, or name another disk with data.cache_dir or TMPDIR"
        )
    return "restore it, or check the path and the network"


def limits(error: OSError) -> str:
    """Which limit of the system an error of a loader ran into, and which settings ask for less."""
    fewer = "lower data.workers or data.prefetch"
    if error.errno in TOO_MANY_FILES:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"a process may have {most} files open: raise that limit (ulimit -n), or {fewer}"
    if error.errno == errno.EAGAIN:
        return f"the user may have no more processes: raise that limit (ulimit -u), or {fewer}"
    if error.errno == errno.ENOSPC:
        return f"/dev/shm, where processes share memory, is full: enlarge it, or {fewer}"
    return f"there is no memory left: ask for more, or {fewer}"


def _text(url: str, allow_pipe: bool) -> bytes:
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


class Reader:
    """Reads pieces of shards, keeping the last few open; one per process, nothing of it survives a fork."""

    def __init__(self, config: DataConfig) -> None:
        self.retries, self.backoff = config.retries, config.backoff
        limit = round(config.cache_gb * 1e9)
        self.cache = Cache(Path(config.cache_dir), limit, config.allow_pipe) if config.cache_dir else None
        self._open: OrderedDict[str, int] = OrderedDict()
        self._most = OPEN_FILES

    def read(self, shard: Remote, offset: int, size: int) -> bytes:
        """`size` bytes of a shard from `offset` on. Raises UserError naming it when retries do not help."""
        return with_retries(lambda: self._read(shard, offset, size), shard.url, self.retries, self.backoff)

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
        try:
            file = self._open_file(shard)
        except OSError as error:
            if error.errno not in TOO_MANY_FILES or not self._open:
                raise
            self._most = max(1, len(self._open) // 2)
            self.close()
            file = self._open_file(shard)
        if file is not None:
            self._open[shard.url] = file
            if len(self._open) > self._most:
                os.close(self._open.popitem(last=False)[1])
        return file

    def _open_file(self, shard: Remote) -> int | None:
        file = self.cache.open(shard) if self.cache else None
        if self.cache and file is None and self._open:
            self.close()  # our own open files may be what fills the cache
            file = self.cache.open(shard)
        path = local(shard.url)
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK) if file is None and path is not None else file


class Cache:
    """A folder of shards, named by their sha256, of at most `limit` bytes; safe for many processes."""

    def __init__(self, folder: Path, limit: int, allow_pipe: bool = False) -> None:
        """`allow_pipe`: files may come out of commands. Raises UserError when the folder cannot be made."""
        self.folder, self.limit, self.allow_pipe = folder, limit, allow_pipe
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={folder} cannot be made ({error}); name another folder"
            ) from None
        self.lockable = locks.supported(folder / LOCK)

    def open(self, shard: Remote) -> int | None:
        """The shard's file, downloaded if it is not there; held against eviction until it is closed.

        None when files in use leave no room for it. Raises OSError when the download fails or is damaged.
        """
        path = self.folder / shard.sha256
        while shard.bytes <= self.limit:
            file = hold(path, fcntl.LOCK_SH)
            if file is not None:
                with contextlib.suppress(PermissionError):  # another user's
                    os.utime(file)  # when it was last wanted: eviction begins with the oldest
                return file
            with self._writable(), self._only_writer(path):
                if not self._bring(shard, path):
                    return None
        return None

    def _bring(self, shard: Remote, path: Path) -> bool:
        """Downloads the shard, or waits while another process does; False when there is no room."""
        part = path.with_suffix(".part")
        self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleared the disk since
        file = hold(part, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT)
        if file is None:
            _await(part)
            return True
        try:
            if path.exists():
                return True
            if not self._reserve(file, part, shard.bytes):
                return False
            download(shard, file, self.allow_pipe)
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
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime, status.st_size, path

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return locks.exclusive_lock(self.folder / LOCK, wait=True, with_children=True)

    @contextlib.contextmanager
    def _only_writer(self, path: Path) -> Iterator[None]:
        """Where files cannot be locked, waits until no other process downloads the shard at `path`."""
        with contextlib.ExitStack() as held:
            if not self.lockable:
                held.enter_context(locks.lock_file(_writers(path), wait=True))
            yield

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """Turns what the system refuses in the folder into a UserError that names it."""
        try:
            yield
        except OSError as error:
            if str(error.filename).startswith(str(self.folder)) and not is_transient(error):
                raise UserError(
                    f"data.cache_dir={self.folder} cannot be used ({error.strerror}: {error.filename}); name another "
                    "folder"
                ) from error
            raise


def hold(path: Path, mode: int, flags: int = os.O_RDONLY) -> int | None:
    """Opens and locks the file at `path`; None when it is missing, or gone once the lock is had, or taken. Opens it
    only, where there are no locks."""
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        locks.flock(file, mode, path)
        if _is_at(file, path):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _writers(path: Path) -> Path:
    """The lock file of those who download the shard at `path`, where files themselves cannot be locked."""
    return path.with_name(f".{path.stem}.writer")


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
    if path.name.startswith("."):
        return False  # a lock
    with contextlib.ExitStack() as held:
        try:
            if path.suffix == ".part" and _writers(path).exists():
                held.enter_context(locks.lock_file(_writers(path)))
            file = hold(
                path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR
            )  # for writing, or NFS refuses the lock
        except (locks.LockTaken, PermissionError):  # the latter for another user's
            return False
        if file is None:
            return False
        path.unlink(missing_ok=True)
        os.close(file)
        return True


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
