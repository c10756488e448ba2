"""Builds shards out of images, on all cores, and resumable.

A shard is a slice of the source's list of images, permuted once by a hash, so that its content depends on the
source and the options build_lock. One shard is one task. `NNNNNN.tar_path` is written first and `NNNNNN.json` last:
where both are there and fit the slice, a later build skips the shard. `build.json` says from the beginning
what a folder is being built from; `index.bin` and, at the very end, `manifest.json` make it a data set.

A shard whose images have changed since is built again. Its sidecar has the SHA-256 of their files; as an extended
attribute it has what the file system said of them, and images of which that is still so are not read again.
"""

from contextlib import ExitStack
from pathlib import Path

from ggcn.data import manifest
from ggcn.shards import sources
from ggcn.shards.assembly import REJECTED, Built, assemble, complete_manifest
from ggcn.shards.build_spec import build_lock, prepare_folder
from ggcn.shards.changes import Changes, find_changes, report_changes
from ggcn.shards.crop import Options
from ggcn.shards.plan import count_samples, plan_shards, plan_tasks
from ggcn.shards.pool import Pool, progress_bar
from ggcn.shards.shard_builder import write_shards
from ggcn.shards.shard_spec import ShardSpec
from ggcn.shards.splits import Split, plan_splits


def build(source: sources.Source, folders: dict[Path, Options], workers: int) -> list[Built] | None:
    """Builds the shards of `source` in each of the folders (and its `holdout`), independently of the others.

    Finishes a build that was killed, and builds shards again whose images changed. The options may differ in
    size alone. Returns what was built, a held-out set before the rest; None if everything was complete.
    Raises UserError (see `prepare_folder`, `plan_splits`, `assemble`) and OSError when the disk fails.
    """
    splits_by_size = [plan_splits(source, out, options) for out, options in folders.items()]
    for splits in splits_by_size:
        for split in reversed(splits):
            prepare_folder(split)
    splits = [split for splits in splits_by_size for split in splits]
    with ExitStack() as locks:
        for out in folders:
            locks.enter_context(build_lock(out))
        specs = _write_shards(source, splits_by_size, workers)
        if specs is None:
            return None
        return [assemble(split, each) for split, each in zip(splits, specs, strict=True)]


def _write_shards(
    source: sources.Source, splits_by_size: list[list[Split]], workers: int
) -> list[list[ShardSpec]] | None:
    """Writes all shards that are missing or out of date; returns all shards of each split, None if all are complete."""
    splits = [split for splits in splits_by_size for split in splits]
    for leftover in (path for split in splits for path in split.folder.glob(".tmp-*")):
        leftover.unlink(missing_ok=True)
    with Pool(min(workers, len(source.entries))) as pool:
        changes = find_changes(splits, pool)
        planned = [
            [plan_shards(split, count_samples(split, pool, changes)) for split in splits]
            for splits in splits_by_size
        ]
        tasks = [task for sizes in zip(*planned, strict=True) for task in plan_tasks(list(sizes), changes)]
        if not tasks and all(map(complete_manifest, splits)):
            return None
        specs_by_split = [specs for size in planned for specs in size]
        report_changes(changes, [spec for specs in specs_by_split for spec in specs])
        for split, specs in zip(splits, specs_by_split, strict=True):
            remove_outdated(split, specs, changes)
        _run_tasks(tasks, sum(len(split.entries) for split in splits), pool)
    return specs_by_split


def remove_outdated(split: Split, specs: list[ShardSpec], changes: Changes) -> None:
    """Removes the manifest if shards change, and shards beyond the last one."""
    if any(map(changes.affect, specs)):
        for name in (manifest.NAME, REJECTED):
            (split.folder / name).unlink(missing_ok=True)
    for path in split.folder.glob("[0-9]*"):
        if path.suffix in (".tar", ".json") and path.stem.isdigit() and int(path.stem) >= len(specs):
            path.unlink(missing_ok=True)


def _run_tasks(tasks: list[list[ShardSpec]], images: int, pool: Pool) -> None:
    """Writes the shards of the tasks; `images`: of all shards, finished ones too."""
    remaining = sum(len(spec.entries) for task in tasks for spec in task)
    with progress_bar(images, images - remaining, "images", " images") as bar:
        pool.run(write_shards, tasks, bar)
