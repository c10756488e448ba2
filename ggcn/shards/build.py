"""Builds shards out of images, on all cores, and resumable.

A shard is a slice of the source's list of images, permuted once by a hash, so that its content depends on the
source and the options alone. One shard is one task. `NNNNNN.tar` is written first and `NNNNNN.json` last:
where both are there and fit the slice, a later build skips the shard. `build.json` says from the beginning
what a folder is being built from; `index.bin` and, at the very end, `manifest.json` make it a data set.

A shard whose images have changed since is built again. Its sidecar has the SHA-256 of their files; as an extended
attribute it has what the file system said of them, and images of which that is still so are not read again.
"""

from contextlib import ExitStack
from pathlib import Path

from ggcn.data import manifest
from ggcn.shards import sources
from ggcn.shards.assembly import REJECTED, Built, assemble, complete
from ggcn.shards.build_spec import alone, claim
from ggcn.shards.changes import Changes, announce, find_changes
from ggcn.shards.crop import Options
from ggcn.shards.plan import count_samples, groups, slices
from ggcn.shards.pool import Pool, progress_bar
from ggcn.shards.shard_builder import write_shards
from ggcn.shards.shard_spec import Slice
from ggcn.shards.split import Part, parts


def discard(part: Part, planned: list[Slice], changes: Changes) -> None:
    """Removes what is no longer so: the manifest over shards that change, and shards beyond the last one."""
    if any(map(changes.touch, planned)):
        for name in (manifest.NAME, REJECTED):
            (part.folder / name).unlink(missing_ok=True)
    for path in part.folder.glob("[0-9]*"):
        if path.suffix in (".tar", ".json") and path.stem.isdigit() and int(path.stem) >= len(planned):
            path.unlink(missing_ok=True)


def build(source: sources.Source, wanted: dict[Path, Options], workers: int) -> list[Built] | None:
    """Builds the shards of `source` in each folder that is wanted (and its `holdout`), as if it were the only one.

    Finishes a build that was killed, and builds shards again whose images changed. The options may differ in
    size alone. Returns what was built, a held-out set before the rest; None if everything was there before.
    Raises UserError (see `claim`, `parts`, `assemble`) and OSError when the disk fails.
    """
    todo = [parts(source, out, options) for out, options in wanted.items()]
    for part in (part for sides in todo for part in reversed(sides)):
        claim(part)
    with ExitStack() as held:
        for out in wanted:
            held.enter_context(alone(out))
        for leftover in (path for sides in todo for part in sides for path in part.folder.glob(".tmp-*")):
            leftover.unlink(missing_ok=True)
        everything = [part for sides in todo for part in sides]
        with Pool(min(workers, len(source.entries))) as pool:
            changes = find_changes(everything, pool)
            planned = [[slices(part, count_samples(part, pool, changes)) for part in sides] for sides in todo]
            tasks = [
                task
                for same_images in zip(*planned, strict=True)
                for task in groups(list(same_images), changes)
            ]
            if not tasks and all(complete(part) for part in everything):
                return None
            pieces_of_all = [pieces for sides in planned for pieces in sides]
            announce(changes, [piece for pieces in pieces_of_all for piece in pieces])
            for part, pieces in zip(everything, pieces_of_all, strict=True):
                discard(part, pieces, changes)
            write_missing(tasks, sum(len(part.entries) for part in everything), pool)
        pairs = [zip(sides, some, strict=True) for sides, some in zip(todo, planned, strict=True)]
        return [assemble(part, pieces) for some in pairs for part, pieces in some]


def write_missing(tasks: list[list[Slice]], images: int, pool: Pool) -> None:
    """Writes the shards of the tasks; images: those of all shards, finished ones too."""
    left = sum(len(piece.entries) for task in tasks for piece in task)
    with progress_bar(images, images - left, "images", " images") as bar:
        pool.run(write_shards, tasks, bar)
