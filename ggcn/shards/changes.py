"""Finds images that changed after their shards were built."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ggcn import files
from ggcn.shards import image_file, sources
from ggcn.shards.entry import Entry
from ggcn.shards.pool import Pool, advance, progress_bar
from ggcn.shards.shard_spec import ShardSpec
from ggcn.shards.splits import Split


def finished_shards(split: Split) -> Iterator[tuple[ShardSpec, dict[str, Any]]]:
    """The finished shards of a split, as they were planned when they were built, and their sidecars."""
    for path in sorted(split.folder.glob("[0-9]*.json")):
        try:
            old = json.loads(files.read_bytes(path))
            images = range(old["start"], old["start"] + old["images"])
            spec = ShardSpec(
                folder=split.folder,
                index=int(path.stem),
                first=old["first"],
                location=split.source.location,
                range=images,
                entries=split.entries[images.start : images.stop],
                counts=old["counts"],
                options=split.options,
            )
            sidecar = spec.read_sidecar()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a sidecar of this version
        if sidecar is not None:
            yield spec, sidecar


@dataclass(frozen=True)
class Changes:
    """Images whose shards have to be built again."""

    edited: set[str]
    """names of images whose files have other bytes than when the shard was built"""
    readable: set[str]
    """names of rejected images whose reason no longer holds"""
    oversized: set[str]
    """names of accepted images with more pixels than are now allowed"""

    @cached_property
    def names(self) -> set[str]:
        """The names of all of them."""
        return self.edited | self.readable | self.oversized

    def affect(self, spec: ShardSpec) -> bool:
        """Whether a shard contains one of the images."""
        return bool(self.names) and any(entry.name in self.names for entry in spec.entries)


def find_changes(splits: list[Split], pool: Pool) -> Changes:
    """Compares finished shards with the images as they are now; only images with other stamps are read."""
    changes, candidates = Changes(set(), set(), set()), []
    for split in splits:
        for spec, sidecar in finished_shards(split):
            max_pixels = split.options.max_pixels
            changes.readable.update(
                name for name, reason in sidecar["rejects"] if image_file.is_readable_now(reason, max_pixels)
            )
            sizes = zip(spec.entries, sidecar["pixels"], strict=True)
            changes.oversized.update(entry.name for entry, pixels in sizes if pixels > max_pixels)
            if not spec.stamps_match(sidecar["contents"]):
                candidates.append((spec, sidecar["contents"]))
    entries = {entry.name: entry for spec, _ in candidates for entry in spec.entries}
    now = hash_contents(splits[0].source.location, list(entries.values()), pool)
    for spec, contents in candidates:
        edited = {
            entry.name
            for entry, content in zip(spec.entries, contents, strict=True)
            if now[entry.name] != content
        }
        changes.edited.update(edited)
        if not edited:
            spec.store_stamps(contents)
    return changes


def hash_contents(location: str, entries: list[Entry], pool: Pool) -> dict[str, str]:
    """Name -> content hash of image files; see `sources.content_hash`."""
    if not entries:
        return {}
    with progress_bar(len(entries), 0, "comparing", " images") as bar:
        lists = pool.run(partial(_content_hashes, location), chunks(entries), bar)
    return dict(zip((entry.name for entry in entries), itertools.chain.from_iterable(lists), strict=True))


def _content_hashes(location: str, entries: list[Entry]) -> list[str]:
    hashes = []
    for entry in entries:
        hashes.append(sources.content_hash(location, entry))
        advance()
    return hashes


def chunks(entries: list[Entry]) -> list[list[Entry]]:
    """The entries in tasks that are large enough for a worker process."""
    return [entries[start : start + 64] for start in range(0, len(entries), 64)]


def report_changes(changes: Changes, specs: list[ShardSpec]) -> None:
    """Prints which images changed, and that the data set becomes another one."""
    if changes.edited:
        print(f"{len(changes.edited)} images changed since their shards were built")
    if changes.readable:
        print(f"{len(changes.readable)} images that were rejected can be read now")
    if changes.oversized:
        print(f"{len(changes.oversized)} images have more pixels than --max-pixels allows now")
    if changes.names:
        again = sum(map(changes.affect, specs))
        print(
            f"{again} of {len(specs)} shards are built again; with other pixels the data set is another one, "
            "and runs on the old one do not continue on it",
            flush=True,
        )
