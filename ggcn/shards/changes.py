"""Images that changed after their shards were built."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ggcn import files
from ggcn.shards import image_file, sources
from ggcn.shards.entry import Entry
from ggcn.shards.pool import Pool, progress_bar, tick
from ggcn.shards.shard_spec import Slice
from ggcn.shards.split import Part


def finished(part: Part) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """The shards that are there, of images as they were then, cut as they were then; and their sidecars."""
    for path in sorted(part.folder.glob("[0-9]*.json")):
        try:
            old = json.loads(files.read_bytes(path))
            run = range(old["start"], old["start"] + old["images"])
            entries = part.entries[run.start : run.stop]
            place, counts = part.source.place, old["counts"]
            piece = Slice(
                part.folder, int(path.stem), old["first"], place, run, entries, counts, part.options
            )
            record = piece.record()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a sidecar of this version
        if record is not None:
            yield piece, record


@dataclass(frozen=True)
class Changes:
    """Images whose shards have to be built again."""

    edited: set[str]
    """names of images with other bytes than in the shard"""
    readable: set[str]
    """names of images that were left out, and what they were left out for is no more"""
    oversized: set[str]
    """names of images that were taken, and have more pixels than are allowed now"""

    @cached_property
    def names(self) -> set[str]:
        """All of them."""
        return self.edited | self.readable | self.oversized

    def touch(self, piece: Slice) -> bool:
        """Whether a shard has one of the images."""
        return bool(self.names) and any(entry.name in self.names for entry in piece.entries)


def find_changes(found: list[Part], pool: Pool) -> Changes:
    """Compares finished shards with the images as they are now. Only images with other stamps are read."""
    changes, suspects = Changes(set(), set(), set()), []
    for part in found:
        for piece, record in finished(part):
            most = part.options.max_pixels
            changes.readable.update(
                name for name, why in record["rejects"] if image_file.can_be_read_now(why, most)
            )
            sizes = zip(piece.entries, record["pixels"], strict=True)
            changes.oversized.update(entry.name for entry, pixels in sizes if pixels > most)
            if not piece.has_same_stamps():
                suspects.append((piece, record["contents"]))
    entries = {entry.name: entry for piece, _ in suspects for entry in piece.entries}
    now = read_contents(found[0].source.place, list(entries.values()), pool)
    for piece, contents in suspects:
        edited = {
            entry.name
            for entry, content in zip(piece.entries, contents, strict=True)
            if now[entry.name] != content
        }
        changes.edited.update(edited)
        if not edited:
            piece.remember_stamps(contents)
    return changes


def read_contents(place: str, entries: list[Entry], pool: Pool) -> dict[str, str]:
    """Name -> content of image files; see `sources.content`."""
    if not entries:
        return {}
    with progress_bar(len(entries), 0, "comparing", " images") as bar:
        lists = pool.run(partial(_contents, place), chunks(entries), bar)
    return dict(zip((entry.name for entry in entries), (one for some in lists for one in some), strict=True))


def _contents(place: str, entries: list[Entry]) -> list[str]:
    contents = []
    for entry in entries:
        contents.append(sources.content(place, entry))
        tick()
    return contents


def chunks(entries: list[Entry]) -> list[list[Entry]]:
    """Tasks that are worth sending to a worker."""
    return [entries[start : start + 64] for start in range(0, len(entries), 64)]


def announce(changes: Changes, planned: list[Slice]) -> None:
    """Says that a finished data set is about to become another one."""
    if changes.edited:
        print(f"{len(changes.edited)} images changed since their shards were built")
    if changes.readable:
        print(f"{len(changes.readable)} images that were left out can be read now")
    if changes.oversized:
        print(f"{len(changes.oversized)} images have more pixels than --max-pixels allows now")
    if changes.names:
        again = sum(map(changes.touch, planned))
        print(
            f"{again} of {len(planned)} shards are built again; with other pixels the data set is another one, "
            "and runs on the old one do not continue on it",
            flush=True,
        )
