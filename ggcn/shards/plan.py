"""Which shards a folder has, and which of them are still to be written."""

import dataclasses
from functools import partial

import numpy as np

from ggcn.shards import crop
from ggcn.shards.changes import Changes, chunks, finished
from ggcn.shards.pool import Pool, progress_bar
from ggcn.shards.shard_spec import Slice
from ggcn.shards.split import Part


def cut_list(counts: list[int], most: int) -> list[range]:
    """Cuts a list of images with `counts` samples each into runs of at most `most` samples (or one image)."""
    starts, held = [0], 0
    for index, samples in enumerate(counts):
        if held + samples > most and index > starts[-1]:
            starts.append(index)
            held = 0
        held += samples
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


def slices(part: Part, counts: list[int]) -> list[Slice]:
    """The shards of a folder; counts: samples per image."""
    firsts = np.cumsum([0, *counts]).tolist()
    runs = cut_list(counts, part.options.samples_per_shard(sum(counts)))
    return [
        Slice(
            part.folder,
            index,
            firsts[run.start],
            part.source.place,
            run,
            part.entries[run.start : run.stop],
            counts[run.start : run.stop],
            part.options,
        )
        for index, run in enumerate(runs)
    ]


def groups(planned: list[list[Slice]], changes: Changes) -> list[list[Slice]]:
    """The shards that are not there yet, or of other images, of several sizes out of the same images, as tasks.

    A task has a shard of the size that has fewest, and those of the other sizes that begin within its images:
    their images are read once, save a few at the end.
    """
    coarse = min(planned, key=len)
    tasks = [
        [piece for pieces in planned for piece in pieces if piece.range.start in task.range]
        for task in coarse
    ]
    missing = [[piece for piece in task if piece.record() is None or changes.touch(piece)] for task in tasks]
    return [task for task in missing if task]


def count_samples(part: Part, pool: Pool, changes: Changes) -> list[int]:
    """Samples per image, before any is decoded: one, but for a grid. What finished shards say is not read again."""
    if part.options.crop != "grid":
        return [1] * len(part.entries)
    counts = dict.fromkeys((entry.name for entry in part.entries), -1)
    for piece, _ in finished(part):
        counts.update(zip((entry.name for entry in piece.entries), piece.counts, strict=True))
    unknown = [entry for entry in part.entries if counts[entry.name] < 0 or entry.name in changes.names]
    if unknown:
        with progress_bar(len(unknown), 0, "sizes", " images") as bar:
            place = dataclasses.replace(part.source, entries=[])  # a task carries its own entries alone
            lists = pool.run(partial(crop.count, place, part.options), chunks(unknown), bar)
        found = (samples for some in lists for samples in some)
        counts.update(zip((entry.name for entry in unknown), found, strict=True))
    return list(counts.values())
