"""One shard to be built: its range of the list of images, and whether a finished shard matches it."""

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
class ShardSpec:
    """A shard to be built from a range of a split's images."""

    folder: Path
    index: int
    first: int
    """number of its first sample in the folder"""
    location: str
    """of the source"""
    range: range
    """of the split's images"""
    entries: list[Entry]
    counts: list[int]
    """samples per image, by its header"""
    options: Options

    @property
    def tar_path(self) -> Path:
        """`NNNNNN.tar`."""
        return self.folder / f"{self.index:06d}.tar"

    @property
    def sidecar_path(self) -> Path:
        """`NNNNNN.json`."""
        return self.tar_path.with_suffix(".json")

    def digest(self) -> str:
        """Identity of the shard's list of images and options; the images' hashes are in the sidecar too."""
        names = [entry.name for entry in self.entries]
        text = json.dumps([VERSION, self.first, names, self.options.identity()])
        return hashlib.sha256(text.encode()).hexdigest()

    def stamps(self) -> bytes:
        """Hash of the images' file stamps; empty if an image has none."""
        stamps = [entry.stamp for entry in self.entries]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest().encode() if all(stamps) else b""

    def store_stamps(self, contents: list[str]) -> None:
        """Stores the stamps of images with these content hashes as an extended attribute, where there are such."""
        if not hasattr(os, "setxattr") or any(map(sources.is_unreadable, contents)):
            return  # unreadable images are tried again
        if stamps := self.stamps():
            with suppress(OSError):
                os.setxattr(self.sidecar_path, STAMPS, stamps)

    def stamps_match(self, contents: list[str]) -> bool:
        """Whether no image has changed since `store_stamps`; False where that is unknown.

        Images at URLs have no stamps: they count as unchanged if all of them could be had, or never can.
        """
        if all(entry.kind == "urls" for entry in self.entries):
            return not any(map(sources.is_unreadable, contents))
        try:
            return bool(stamps := self.stamps()) and os.getxattr(self.sidecar_path, STAMPS) == stamps
        except (OSError, AttributeError):
            return False

    def read_sidecar(self) -> dict[str, Any] | None:
        """The sidecar of the finished shard; None if it is missing, incomplete or does not match this spec."""
        try:
            sidecar: dict[str, Any] = json.loads(files.read_bytes(self.sidecar_path))
            complete = not sidecar["samples"] or self.tar_path.stat().st_size == sidecar["bytes"]
            return sidecar if complete and sidecar["slice"] == self.digest() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def name_hash(name: str, *key: Key) -> int:
    """A 64-bit hash of an image's name, to order or select images by; the name may hold bytes that are not text."""
    return bits(*key, ascii(name))
