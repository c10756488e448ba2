"""Folders of shards, and where every one of their samples lies."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ggcn.config.data import DataConfig
from ggcn.data import index_file, manifest, manifest_file
from ggcn.data.manifest import Manifest
from ggcn.data.remote import Remote, download, join, local, read_manifest_text
from ggcn.data.retries import with_retries
from ggcn.data.shard_cache import Cache
from ggcn.errors import UserError
from ggcn.redact import shard_folder

MOST_INDICES = 10**9  # bytes of other data sets' indices that a node keeps


def load_manifest(folder: str, config: DataConfig) -> Manifest:
    """Reads the manifest of a local or remote folder. Raises UserError when there is none."""
    path = local(folder)
    if path is not None:
        return manifest_file.load(path)
    url = join(folder, manifest.NAME)
    text = with_retries(
        lambda: read_manifest_text(url, config.allow_pipe), url, config.retries, config.backoff
    )
    return manifest_file.parse(text, shard_folder(url))


def open_index(folder: str, data: Manifest, config: DataConfig) -> np.ndarray:
    """Where every sample of a folder lies: its index, mapped into memory, PLACE [samples].

    A remote index is kept below data.cache_dir, once for all processes of a node and beside the limit for
    shards, which it would take up for the whole run. Without a cache, each process that calls this keeps a
    copy of its own in the temporary folder.
    Raises UserError when it is missing or differs from the manifest.
    """
    if local(folder) is not None or data.index is None:
        return index_file.open_index(data)
    index = Remote(join(folder, data.index.name), data.index.bytes, data.index.sha256)
    file = with_retries(lambda: _fetched(index, config), index.url, config.retries, config.backoff)
    try:
        return index_file.map_index(
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


REMOTES_KEPT = 4096  # shards' addresses that a process keeps made out: 1.5 MB


class Folder(NamedTuple):
    """One set of shards: its path or URL, and its manifest."""

    url: str
    manifest: Manifest


class Index:
    """Where every sample lies, in arrays rather than objects: all processes of a node share most of their memory."""

    def __init__(self, folders: Sequence[Folder], config: DataConfig) -> None:
        """Opens the folders' indices. Raises UserError for one that is missing, unreachable or damaged."""
        manifests = [folder.manifest for folder in folders]
        self._folders = folders
        self._places = [open_index(folder.url, folder.manifest, config) for folder in folders]
        self._start = np.cumsum([0] + [one.samples for one in manifests])
        self._first_shard = np.cumsum([0] + [len(one.shards) for one in manifests])
        self._bytes = np.concatenate([one.shards.bytes for one in manifests])
        self.folder = np.repeat(range(len(folders)), [len(one.shards) for one in manifests])
        self.first = np.concatenate([[0], np.cumsum(np.concatenate([one.counts for one in manifests]))])
        """per shard: the id of its first sample"""
        self._remotes: dict[int, Remote] = {}

    def close(self) -> None:
        """Unmaps the indices, which gives cached ones free for eviction."""
        self._places.clear()

    def remote(self, shard: int) -> Remote:
        """A shard by its number through all folders: where it lies and what its bytes must be."""
        if shard not in self._remotes:
            if len(self._remotes) >= REMOTES_KEPT:
                self._remotes.clear()
            number = int(self.folder[shard])
            folder = self._folders[number]
            one = folder.manifest.shards[shard - int(self._first_shard[number])]
            self._remotes[shard] = Remote(join(folder.url, one.name), one.bytes, one.sha256)
        return self._remotes[shard]

    def places(self, ids: np.ndarray, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes in bytes, int64, of some samples, given with their shards.

        Raises UserError when one would not lie within its shard: the index is damaged.
        """
        places = self._places[0][ids] if len(self._places) == 1 else self._of_several(ids, shards)
        offset, size = places["offset"].astype(np.int64), places["size"].astype(np.int64)
        wrong = (offset < index_file.BLOCK) | (size == 0) | (offset > self._bytes[shards] - size)
        if wrong.any():
            shard = self.remote(int(shards[wrong.argmax()]))
            raise UserError(
                f"the index has a sample outside its shard {shard_folder(shard.url)}; "
                f"restore it or {manifest.REBUILD}"
            )
        return offset, size

    def _of_several(self, ids: np.ndarray, shards: np.ndarray) -> np.ndarray:
        folder, places = self.folder[shards], np.empty(len(ids), index_file.PLACE)
        for number in np.unique(folder).tolist():
            here = folder == number
            places[here] = self._places[number][ids[here] - self._start[number]]
        return places
