"""Folders of shards, and where each of their samples lies."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ggcn.config.data import DataConfig
from ggcn.data import index_file, manifest, manifest_file
from ggcn.data.manifest import Manifest
from ggcn.data.remote import RemoteFile, download, join_url, local_path, read_manifest_text
from ggcn.data.retries import with_retries
from ggcn.data.shard_cache import ShardCache
from ggcn.errors import UserError
from ggcn.redact import shard_folder

MAX_INDEX_CACHE_BYTES = 10**9  # for other data sets' indices on a node
MAX_REMOTES = 4096  # shards whose addresses a process keeps: 1.5 MB


def load_manifest(folder: str, config: DataConfig) -> Manifest:
    """Reads the manifest of a local or remote folder. Raises UserError when there is none."""
    path = local_path(folder)
    if path is not None:
        return manifest_file.load(path)
    url = join_url(folder, manifest.NAME)
    text = with_retries(
        lambda: read_manifest_text(url, config.allow_pipe), url, config.retries, config.backoff
    )
    return manifest_file.parse(text, shard_folder(url))


def open_index(folder: str, data: Manifest, config: DataConfig) -> np.ndarray:
    """Where every sample of a folder lies: its index, mapped into memory, BYTE_RANGE [samples].

    A remote index is kept below data.cache_dir, once for all processes of a node; it does not count against the
    limit for shards, since it is in use for the whole run. Without a cache, each process that calls this keeps a
    copy of its own in the temporary folder.
    Raises UserError when it is missing or differs from the manifest.
    """
    if local_path(folder) is not None or data.index is None:
        return index_file.open_index(data)
    index = RemoteFile(join_url(folder, data.index.name), data.index.bytes, data.index.sha256)
    file = with_retries(lambda: _open_local_copy(index, config), index.url, config.retries, config.backoff)
    try:
        # the mapping keeps the file open, hence in the cache
        return index_file.map_index(file, data.samples, shard_folder(index.url))
    finally:
        os.close(file)


def _open_local_copy(file: RemoteFile, config: DataConfig) -> int:
    """The descriptor of a local copy of a remote file. Raises UserError when it exceeds data.cache_gb."""
    if file.bytes > config.cache_gb * 1e9:
        raise UserError(
            f"{shard_folder(file.url)} has {file.bytes} bytes, more than data.cache_gb; raise that"
        )
    if config.cache_dir:
        cache = ShardCache(
            Path(config.cache_dir) / ".index", file.bytes + MAX_INDEX_CACHE_BYTES, config.allow_pipe
        )
        if (cached := cache.open(file)) is not None:
            return cached
    with tempfile.TemporaryFile() as copy:
        download(file, copy.fileno(), config.allow_pipe)
        return os.dup(copy.fileno())


class ShardFolder(NamedTuple):
    """One set of shards: its path or URL, and its manifest."""

    url: str
    manifest: Manifest


class ShardIndex:
    """Where each sample lies, in memory-mapped arrays: the processes of a node share most of their memory."""

    def __init__(self, folders: Sequence[ShardFolder], config: DataConfig) -> None:
        """Opens the folders' indices. Raises UserError for one that is missing, unreachable or damaged."""
        manifests = [folder.manifest for folder in folders]
        self._folders = folders
        self._ranges = [open_index(folder.url, folder.manifest, config) for folder in folders]
        self._start = np.cumsum([0] + [each.samples for each in manifests])
        self._first_shard = np.cumsum([0] + [len(each.shards) for each in manifests])
        self._bytes = np.concatenate([each.shards.bytes for each in manifests])
        self.folder = np.repeat(range(len(folders)), [len(each.shards) for each in manifests])
        self.first = np.concatenate([[0], np.cumsum(np.concatenate([each.counts for each in manifests]))])
        """per shard: the id of its first sample"""
        self._remotes: dict[int, RemoteFile] = {}

    def close(self) -> None:
        """Unmaps the indices, so that cached ones can be evicted."""
        self._ranges.clear()

    def remote(self, shard: int) -> RemoteFile:
        """The file of a shard, given by its number across all folders."""
        if shard not in self._remotes:
            if len(self._remotes) >= MAX_REMOTES:
                self._remotes.clear()
            number = int(self.folder[shard])
            folder = self._folders[number]
            file = folder.manifest.shards[shard - int(self._first_shard[number])]
            self._remotes[shard] = RemoteFile(join_url(folder.url, file.name), file.bytes, file.sha256)
        return self._remotes[shard]

    def byte_ranges(self, ids: np.ndarray, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes in bytes, int64, of samples given by ids and shards.

        Raises UserError when one would not lie within its shard: the index is damaged.
        """
        ranges = self._ranges[0][ids] if len(self._ranges) == 1 else self._of_several(ids, shards)
        offset, size = ranges["offset"].astype(np.int64), ranges["size"].astype(np.int64)
        wrong = (offset < index_file.BLOCK) | (size == 0) | (offset > self._bytes[shards] - size)
        if wrong.any():
            shard = self.remote(int(shards[wrong.argmax()]))
            raise UserError(
                f"the index has a sample outside its shard {shard_folder(shard.url)}; "
                f"restore it or {manifest.REBUILD}"
            )
        return offset, size

    def _of_several(self, ids: np.ndarray, shards: np.ndarray) -> np.ndarray:
        """The index entries of samples in several folders, BYTE_RANGE [samples]."""
        folder, ranges = self.folder[shards], np.empty(len(ids), index_file.BYTE_RANGE)
        for number in np.unique(folder).tolist():
            here = folder == number
            ranges[here] = self._ranges[number][ids[here] - self._start[number]]
        return ranges
