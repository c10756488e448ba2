"""The manifest of a folder of shards: it is the data set.

`OUT/manifest.json` is written last by tools/make_shards.py and says all that training needs to know before
it opens a shard: how many samples, where each one lies, and what the bytes must hash to.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ggcn import files
from ggcn.errors import UserError

NAME = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One tar of images."""

    name: str
    """file name inside the folder of the manifest"""
    samples: int
    bytes: int
    """size of the tar"""
    sha256: str
    offsets: list[int]
    """per sample: where its image's bytes begin in the tar"""
    sizes: list[int]
    """per sample: how many bytes its image has"""


@dataclass(frozen=True)
class Manifest:
    """A data set of square images in shards."""

    size: int
    """pixels along a side"""
    channels: int
    extension: str
    """the images' encoding and their name's ending in the tar: png, jpg or webp"""
    samples: int
    bytes: int
    options: dict[str, Any]
    """how the shards were built; another set of options is another data set"""
    rejected: int
    """images of the source that could not be read; rejected.jsonl lists them"""
    shards: list[Shard]
    folder: Path = field(default=Path(), compare=False)

    @cached_property
    def hash(self) -> str:
        """Identity of the content: changes with any shard's bytes, not with the place it lies in."""
        text = json.dumps([self.size, self.channels, [(s.samples, s.sha256) for s in self.shards]])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def counts(self) -> np.ndarray:
        """Samples per shard, int64."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json`, whole or not at all."""
        value = {"version": VERSION, **asdict(self)}
        del value["folder"]
        files.write_json(folder / NAME, value, indent=None)


def load(folder: str | Path) -> Manifest:
    """Reads the manifest of a folder made by make_shards.

    Raises UserError when there is none or when it is not one of ours.
    """
    path = Path(folder) / NAME
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no shards in {folder} (there is no {NAME}); build them with "
            f"`python tools/make_shards.py SOURCE {folder} --size N`"
        ) from None
    return parse(text, str(path), Path(folder))


def parse(text: str, name: str, folder: Path = Path()) -> Manifest:
    """The manifest in a file's text; `name` says in errors where it came from.

    Raises UserError when it is not one of ours.
    """
    try:
        value = json.loads(text)
        if value.pop("version") != VERSION:
            raise UserError(f"{name} is of another version; build the shards again with this make_shards")
        shards = [Shard(**shard) for shard in value.pop("shards")]
        return Manifest(**value, shards=shards, folder=folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is damaged ({error}); build the shards again") from None


def channels(manifests: Sequence[Manifest]) -> int:
    """Channels of the images. Raises UserError when folders of a mixture differ in that."""
    found = {manifest.channels for manifest in manifests}
    if len(found) > 1:
        raise UserError("data.mixture has grey and colour shards; build them all in one way")
    return found.pop()


def check_files(manifest: Manifest, full: bool = False) -> None:
    """Compares every shard's size, and its sha256 if `full`, with the manifest.

    Raises UserError naming the first shard that is missing or differs.
    """
    for shard in manifest.shards:
        path = manifest.folder / shard.name
        if not path.is_file():
            raise UserError(f"shard {path} is missing; restore it or build the shards again")
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"shard {path} has {size} bytes, not {shard.bytes}; restore it or build the shards again"
            )
        if full and files.sha256(path) != shard.sha256:
            raise UserError(
                f"shard {path} was altered (sha256 differs); restore it or build the shards again"
            )
