"""Reads ranges of bytes out of shards, local, remote or cached."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ggcn.config.data import DataConfig
from ggcn.data.remote import RemoteFile, local_path, read_range
from ggcn.data.retries import FILE_LIMIT_ERRNOS, with_retries
from ggcn.data.shard_cache import ShardCache

MAX_REQUESTS = 8
"""requests to a server or store at once, per process"""
MAX_GAP_BYTES = 16 << 10
"""bytes between two ranges that are read for nothing rather than make another request"""
MAX_SPAN_BYTES = 8 << 20
MAX_OPEN_FILES = 64  # per process: a few lanes' blocks; well below the usual limit of 1024


@dataclass
class Span:
    """A range of a shard that is read at once, and the parts of it that were asked for."""

    shard: RemoteFile
    start: int
    end: int
    parts: list[tuple[int, int]]
    """offset in the shard and size of each"""

    def request(self) -> tuple[RemoteFile, int, int]:
        """Shard, offset and size."""
        return self.shard, self.start, self.end - self.start


class ShardReader:
    """Reads byte ranges of shards and keeps the most recent shards open; each process needs one of its own."""

    def __init__(self, config: DataConfig) -> None:
        self.retries, self.backoff = config.retries, config.backoff
        limit = round(config.cache_gb * 1e9)
        self.cache = (
            ShardCache(Path(config.cache_dir), limit, config.allow_pipe) if config.cache_dir else None
        )
        self._open: OrderedDict[str, int] = OrderedDict()
        self._max_open = MAX_OPEN_FILES
        self._pool: ThreadPoolExecutor | None = None
        self._answered = False

    def read(self, shard: RemoteFile, offset: int, size: int) -> bytes:
        """The `size` bytes of a shard from `offset` on. Raises UserError naming it when retries do not help."""
        return with_retries(lambda: self._read(shard, offset, size), shard.url, self.retries, self.backoff)

    def read_many(self, requests: Sequence[tuple[RemoteFile, int, int]]) -> list[bytes]:
        """The bytes of several (shard, offset, size), sorted by where they lie.

        Of shards that are neither local nor cached, neighbouring ranges are requested as one, and several at once.
        Raises UserError as `read` does.
        """
        by_range = groupby(requests, key=lambda request: self._is_ranged(request[0]))
        return [
            data
            for ranged, group in by_range
            for data in (self._read_ranges(list(group)) if ranged else self._read_files(group))
        ]

    def _is_ranged(self, shard: RemoteFile) -> bool:
        """Whether a shard has no file here, neither its own nor one in the cache."""
        return self.cache is None and local_path(shard.url) is None

    def _read_files(self, requests: Iterable[tuple[RemoteFile, int, int]]) -> Iterator[bytes]:
        for _, group in groupby(requests, key=lambda request: request[0].url):
            yield from self._read_one_shard(list(group))

    def _read_ranges(self, requests: Sequence[tuple[RemoteFile, int, int]]) -> list[bytes]:
        spans = list(_merged(requests))
        blocks = self._read_spans(spans)
        return [
            block[offset - span.start : offset - span.start + size]
            for span, block in zip(spans, blocks, strict=True)
            for offset, size in span.parts
        ]

    def _read_spans(self, spans: list[Span]) -> list[bytes]:
        """The bytes of each span. A server that has not answered yet, or failed, is asked for the first one alone."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_REQUESTS)
        alone = 0 if self._answered else 1
        self._answered = False
        blocks = [self._read_remote(*span.request()) for span in spans[:alone]]
        blocks += self._pool.map(lambda span: self._read_remote(*span.request()), spans[alone:])
        self._answered = True
        return blocks

    def _read_remote(self, shard: RemoteFile, offset: int, size: int) -> bytes:
        return with_retries(
            lambda: _complete(read_range(shard.url, offset, size), offset, size),
            shard.url,
            self.retries,
            self.backoff,
        )

    def _read_one_shard(self, requests: Sequence[tuple[RemoteFile, int, int]]) -> list[bytes]:
        """What `read` returns for each of some requests to one shard; faster, for its file is looked up once, and what
        went wrong only when something did."""
        shard = requests[0][0]
        places = [(offset, size) for _, offset, size in requests]
        file = self._open.get(shard.url)
        if file is not None:
            self._open.move_to_end(shard.url)
            try:
                read = [os.pread(file, size, offset) for offset, size in places]
                if all(len(data) == size for data, (_, size) in zip(read, places, strict=True)):
                    return read
            except OSError:
                pass  # `read` tries again, and reports
        return [self.read(shard, offset, size) for offset, size in places]

    def close(self) -> None:
        """Closes all files, so that cached ones can be evicted."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, shard: RemoteFile, offset: int, size: int) -> bytes:
        try:
            file = self._descriptor(shard)
            data = read_range(shard.url, offset, size) if file is None else os.pread(file, size, offset)
            return _complete(data, offset, size)
        except OSError:
            self.close()  # a handle may be stale, as after a network file system's restart
            raise

    def _descriptor(self, shard: RemoteFile) -> int | None:
        """The descriptor of a local file with the shard's bytes; None when there is none."""
        if shard.url in self._open:
            self._open.move_to_end(shard.url)
            return self._open[shard.url]
        try:
            file = self._open_file(shard)
        except OSError as error:
            if error.errno not in FILE_LIMIT_ERRNOS or not self._open:
                raise
            self._max_open = max(1, len(self._open) // 2)
            self.close()
            file = self._open_file(shard)
        if file is not None:
            self._open[shard.url] = file
            if len(self._open) > self._max_open:
                os.close(self._open.popitem(last=False)[1])
        return file

    def _open_file(self, shard: RemoteFile) -> int | None:
        """Opens the shard in the cache or, if it is local, where it lies; None when neither is possible."""
        file = self.cache.open(shard) if self.cache else None
        if self.cache and file is None and self._open:
            self.close()  # our own open files may be what fills the cache
            file = self.cache.open(shard)
        path = local_path(shard.url)
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK) if file is None and path is not None else file


def _complete(data: bytes, offset: int, size: int) -> bytes:
    """The data. Raises OSError unless it has `size` bytes."""
    if len(data) != size:
        raise OSError(f"{len(data)} of {size} bytes at {offset}")
    return data


def _merged(requests: Sequence[tuple[RemoteFile, int, int]]) -> Iterator[Span]:
    """Ranges with at most MAX_GAP_BYTES between them as one; in the order of the requests."""
    span: Span | None = None
    for shard, offset, size in requests:
        near = span is not None and span.shard.url == shard.url and 0 <= offset - span.end <= MAX_GAP_BYTES
        if span is not None and near and offset + size - span.start <= MAX_SPAN_BYTES:
            span.end = offset + size
            span.parts.append((offset, size))
            continue
        if span is not None:
            yield span
        span = Span(shard, offset, offset + size, [(offset, size)])
    if span is not None:
        yield span
