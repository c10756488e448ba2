"""Reads ranges of bytes out of shards, local, remote or cached."""

import os
from collections import OrderedDict
from pathlib import Path

from ggcn.config.data import DataConfig
from ggcn.data.remote import RemoteFile, local_path, read_range
from ggcn.data.retries import FILE_LIMIT_ERRNOS, with_retries
from ggcn.data.shard_cache import ShardCache

MAX_OPEN_FILES = 64  # per process: a few lanes' blocks; well below the usual limit of 1024


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

    def read(self, shard: RemoteFile, offset: int, size: int) -> bytes:
        """The `size` bytes of a shard from `offset` on. Raises UserError naming it when retries do not help."""
        return with_retries(lambda: self._read(shard, offset, size), shard.url, self.retries, self.backoff)

    def close(self) -> None:
        """Closes all files, so that cached ones can be evicted."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, shard: RemoteFile, offset: int, size: int) -> bytes:
        try:
            file = self._descriptor(shard)
            data = read_range(shard.url, offset, size) if file is None else os.pread(file, size, offset)
            if len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes at {offset}")
            return data
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
