"""What makes finished shards a data set: the index, the manifest and the list of rejected images."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggcn import files
from ggcn.data import index_file, manifest_file, verification
from ggcn.data.manifest import Manifest, Shard, Shards
from ggcn.errors import UserError
from ggcn.shards.shard_spec import Slice
from ggcn.shards.split import Part

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Built:
    """A finished folder of shards."""

    manifest: Manifest
    rejects: list[tuple[str, str]]
    """(source, reason)"""
    enlarged: int
    """samples whose square had fewer pixels than the sample"""


def complete(part: Part) -> Manifest | None:
    """The manifest of a folder that is all there; None otherwise."""
    try:
        found = manifest_file.load(part.folder)
        verification.check_files(found)
    except UserError:
        return None
    # a manifest of version 1 is written again, from the sidecars
    return found if found.options == part.claim and found.index else None


def remarks(folder: Path) -> Counter[str]:
    """What is to be said of images that were taken into a finished folder, and of how many each."""
    counts: Counter[str] = Counter()
    for path in folder.glob("[0-9]*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # no sidecar of this version
            counts.update([remark for _, remark in json.loads(files.read_bytes(path))["remarks"]])
    return counts


def assemble(part: Part, planned: list[Slice]) -> Built:
    """Writes rejected.jsonl, index.bin and, last of all, manifest.json. Raises UserError if no image could be read."""
    read = Sidecars(part.options.size)
    index = index_file.write_index(part.folder, read.places(planned))
    if read.rejects:
        lines = [json.dumps({"source": name, "reason": why}) for name, why in read.rejects]
        files.write_text(part.folder / REJECTED, "\n".join(lines) + "\n")
    shards, options = Shards.of(read.shards), part.options
    made = Manifest(
        size=options.size,
        channels=3,
        extension=options.format,
        samples=int(shards.samples.sum()),
        bytes=int(shards.bytes.sum()),
        options=part.claim,
        rejected=len(read.rejects),
        shards=shards,
        index=index,
        folder=part.folder,
    )
    made.save(part.folder)
    return Built(made, read.rejects, read.enlarged)


class Sidecars:
    """What the sidecars of finished shards say, read one by one: those of large data sets exceed the memory."""

    def __init__(self, size: int) -> None:
        """`size`: pixels along a side of the samples."""
        self.size = size
        self.shards: list[Shard] = []
        self.rejects: list[tuple[str, str]] = []
        self.enlarged = 0

    def places(self, planned: list[Slice]) -> Iterator[np.ndarray]:
        """The index entries of each shard, while the rest of its sidecar is added up here.

        Raises UserError for a shard that is not there, and if there is no sample at all.
        """
        for piece in planned:
            record = piece.record()
            if record is None:
                raise UserError(f"shard {piece.tar} vanished while building; run the same command again")
            self.rejects += [(name, why) for name, why in record["rejects"]]
            if record["samples"]:
                self.shards.append(_shard(piece, record))
                self.enlarged += sum(right - left < self.size for _, (left, _, right, _) in record["sources"])
                yield index_file.byte_ranges(record["offsets"], record["sizes"])
        if not self.shards:
            name, why = self.rejects[0]
            raise UserError(f"none of the {len(self.rejects)} images can be read; the first is {name}: {why}")


def _shard(piece: Slice, record: dict[str, Any]) -> Shard:
    return Shard(piece.tar.name, record["samples"], record["bytes"], record["sha256"])
