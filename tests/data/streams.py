"""Streams over small shards, and their batches."""

# mypy: allow-untyped-defs

import itertools
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import torch

from ggcn.config.data import DataConfig
from ggcn.data import manifest_file, stream
from ggcn.data.remote import RemoteFile
from ggcn.data.stream import Batch, Stream
from ggcn.distributed.lanes import Lanes


def opened(
    folder: Path | str, lanes: Lanes | int = 4, size: int = 8, start: int = 0, **settings: Any
) -> Stream:
    """A stream without workers and with quick retries unless `settings` say otherwise."""
    config = DataConfig(**{"shards": str(folder), "workers": 0, "retries": 2, "backoff": 0.01, **settings})
    return stream.build(config, lanes if isinstance(lanes, Lanes) else Lanes(lanes), 1, size, start)


def take(count: int, *args: Any, **settings: Any) -> list[Batch]:
    with opened(*args, **settings) as batches:
        return list(itertools.islice(batches, count))


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a.ids, b.ids) and torch.equal(a.images, b.images) for a, b in pairs)


def pixels(batch: Batch) -> np.ndarray:
    """[samples, height, width, channels]"""
    return batch.images.permute(0, 2, 3, 1).numpy()


def remotes(folder: Path) -> list[RemoteFile]:
    data = manifest_file.load(folder)
    return [RemoteFile(str(folder / shard.name), shard.bytes, shard.sha256) for shard in data.shards]


def config(url: Any, **settings: Any) -> DataConfig:
    return DataConfig(**{"shards": str(url), "workers": 0, "retries": 2, "backoff": 0.001, **settings})


def first(url: Any, **settings: Any) -> list[int]:
    """The first batch's samples and the sum of its pixels."""
    with stream.build(config(url, **settings), Lanes(4), 1, 8) as batches:
        batch = next(batches)
        return [*batch.ids.tolist(), int(batch.images.sum())]


def memory_store(folder: Path) -> str:
    """The shards in fsspec's memory."""
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/set/{path.name}", path.read_bytes())
    return "memory://set"
