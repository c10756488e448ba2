"""One shard to be built: its part of the list of images, and whether a finished shard still fits it."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.distributed.lanes import Key, bits
from ggcn.shards import sources
from ggcn.shards.crop import Options
from ggcn.shards.entry import Entry

STAMPS = "user.ggcn.sources"
VERSION = 2


@dataclass(frozen=True)
class Slice:
    """A shard to be: its part of the source's list."""

    folder: Path
    index: int
    first: int
    """global index of its first sample"""
    place: str
    range: range
    """of the folder's images"""
    entries: list[Entry]
    counts: list[int]
    """samples per image, by the header alone"""
    options: Options

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.index:06d}.tar"

    @property
    def sidecar(self) -> Path:
        return self.tar.with_suffix(".json")

    def digest(self) -> str:
        """Identity of the list of images that the shard is made of, and of how; their content stands beside it."""
        names = [entry.name for entry in self.entries]
        text = json.dumps([VERSION, self.first, names, self.options.identity()])
        return hashlib.sha256(text.encode()).hexdigest()

    def stamps(self) -> bytes:
        """Identity of what the file system says of the images; empty if it proves nothing about one of them."""
        stamps = [entry.stamp for entry in self.entries]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest().encode() if all(stamps) else b""

    def remember_stamps(self, contents: list[str]) -> None:
        """Keeps the stamps of images that have these contents, where the file system has attributes."""
        if not hasattr(os, "setxattr") or any(map(sources.is_unreadable, contents)):
            return  # what could not be read is tried again
        if stamps := self.stamps():
            with suppress(OSError):
                os.setxattr(self.sidecar, STAMPS, stamps)

    def has_same_stamps(self) -> bool:
        """Whether no image can have changed since `remember_stamps`. False where that cannot be known."""
        try:
            return bool(stamps := self.stamps()) and os.getxattr(self.sidecar, STAMPS) == stamps
        except (OSError, AttributeError):
            return False

    def record(self) -> dict[str, Any] | None:
        """The sidecar of the finished shard; None if the shard is not there as this slice wants it."""
        try:
            record: dict[str, Any] = json.loads(files.read_bytes(self.sidecar))
            whole = not record["samples"] or self.tar.stat().st_size == record["bytes"]
            return record if whole and record["slice"] == self.digest() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def rank(name: str, *key: Key) -> int:
    """64 bits to order images by, or to choose some; names may hold bytes that are no text."""
    return bits(*key, ascii(name))
