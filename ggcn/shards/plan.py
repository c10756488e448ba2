"""Plans which shards a split has, and which of them are still to be written."""

import dataclasses
import itertools
from functools import partial

import numpy as np

from ggcn.shards import crop
from ggcn.shards.changes import Changes, chunks, finished_shards
from ggcn.shards.pool import Pool, progress_bar
from ggcn.shards.shard_spec import ShardSpec
from ggcn.shards.splits import Split


def split_by_samples(counts: list[int], maximum: int) -> list[range]:
    """Splits a list of images with `counts` samples each into ranges of at most `maximum` samples (or one image)."""
    starts, total = [0], 0
    for index, samples in enumerate(counts):
        if total + samples > maximum and index > starts[-1]:
            starts.append(index)
            total = 0
        total += samples
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


def plan_shards(split: Split, counts: list[int]) -> list[ShardSpec]:
    """The shards of a split; `counts`: samples per image."""
    firsts = np.cumsum([0, *counts]).tolist()
    ranges = split_by_samples(counts, split.options.samples_per_shard(sum(counts)))
    return [
        ShardSpec(
            folder=split.folder,
            index=index,
            first=firsts[images.start],
            location=split.source.location,
            range=images,
            entries=split.entries[images.start : images.stop],
            counts=counts[images.start : images.stop],
            options=split.options,
        )
        for index, images in enumerate(ranges)
    ]


def plan_tasks(planned: list[list[ShardSpec]], changes: Changes) -> list[list[ShardSpec]]:
    """Tasks out of the shards of several sizes of the same images that are missing or affected by changes.

    A task has a shard of the size with the fewest shards, and those of the other sizes that begin within its images:
    their images are read once, except for a few at the end.
    """
    fewest = min(planned, key=len)
    tasks = [
        [spec for specs in planned for spec in specs if spec.range.start in task.range] for task in fewest
    ]
    missing = [
        [spec for spec in task if spec.read_sidecar() is None or changes.affect(spec)] for task in tasks
    ]
    return [task for task in missing if task]


def count_samples(split: Split, pool: Pool, changes: Changes) -> list[int]:
    """Samples per image: 1, or for a grid what finished shards or the images' headers say."""
    if split.options.crop != "grid":
        return [1] * len(split.entries)
    counts = dict.fromkeys((entry.name for entry in split.entries), -1)
    for spec, _ in finished_shards(split):
        counts.update(zip((entry.name for entry in spec.entries), spec.counts, strict=True))
    unknown = [entry for entry in split.entries if counts[entry.name] < 0 or entry.name in changes.names]
    if unknown:
        with progress_bar(len(unknown), 0, "sizes", " images") as bar:
            source = dataclasses.replace(split.source, entries=[])  # a task sends only its own entries
            lists = pool.run(partial(crop.count_samples, source, split.options), chunks(unknown), bar)
        names = (entry.name for entry in unknown)
        counts.update(zip(names, itertools.chain.from_iterable(lists), strict=True))
    return list(counts.values())
