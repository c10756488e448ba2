"""Turns finished shards into a data set: writes the index, the manifest and the list of rejected images."""

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
from ggcn.shards.shard_spec import ShardSpec
from ggcn.shards.splits import Split

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Built:
    """A finished folder of shards."""

    manifest: Manifest
    rejects: list[tuple[str, str]]
    """(source, reason)"""
    enlarged: int
    """samples whose square had fewer pixels than the sample"""


def complete_manifest(split: Split) -> Manifest | None:
    """The manifest of a complete folder; None if anything is missing or out of date."""
    try:
        manifest = manifest_file.load(split.folder)
        verification.check_files(manifest)
    except UserError:
        return None
    # a manifest of version 1 is written again, from the sidecars
    return manifest if manifest.options == split.build_spec and manifest.index else None


def count_warnings(folder: Path) -> Counter[str]:
    """Warnings about accepted images in a finished folder, each with its number of images."""
    counts: Counter[str] = Counter()
    for path in folder.glob("[0-9]*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # not a sidecar of this version
            counts.update([warning for _, warning in json.loads(files.read_bytes(path))["remarks"]])
    return counts


def assemble(split: Split, specs: list[ShardSpec]) -> Built:
    """Writes rejected.jsonl, index.bin and, last of all, manifest.json. Raises UserError if no image could be read."""
    sidecars = Sidecars(split.options.size)
    index = index_file.write_index(split.folder, sidecars.byte_ranges(specs))
    if sidecars.rejects:
        lines = [json.dumps({"source": name, "reason": reason}) for name, reason in sidecars.rejects]
        files.write_text(split.folder / REJECTED, "\n".join(lines) + "\n")
    shards, options = Shards.of(sidecars.shards), split.options
    manifest = Manifest(
        size=options.size,
        channels=3,
        extension=options.format,
        samples=int(shards.samples.sum()),
        bytes=int(shards.bytes.sum()),
        options=split.build_spec,
        rejected=len(sidecars.rejects),
        shards=shards,
        index=index,
        folder=split.folder,
    )
    manifest.save(split.folder)
    return Built(manifest, sidecars.rejects, sidecars.enlarged)


class Sidecars:
    """Sums over the sidecars of finished shards, which are read one by one: those of large data sets exceed memory."""

    def __init__(self, size: int) -> None:
        """`size`: pixels along a side of the samples."""
        self.size = size
        self.shards: list[Shard] = []
        self.rejects: list[tuple[str, str]] = []
        self.enlarged = 0

    def byte_ranges(self, specs: list[ShardSpec]) -> Iterator[np.ndarray]:
        """The index entries of each shard; the rest of its sidecar is added to the sums.

        Raises UserError for a missing shard, and if there is no sample at all.
        """
        for spec in specs:
            sidecar = spec.read_sidecar()
            if sidecar is None:
                raise UserError(
                    f"shard {spec.tar_path} disappeared during the build; run the same command again"
                )
            self.rejects += [(name, reason) for name, reason in sidecar["rejects"]]
            if sidecar["samples"]:
                self.shards.append(_shard(spec, sidecar))
                self.enlarged += sum(
                    right - left < self.size for _, (left, _, right, _) in sidecar["sources"]
                )
                yield index_file.byte_ranges(sidecar["offsets"], sidecar["sizes"])
        if not self.shards:
            name, reason = self.rejects[0]
            raise UserError(
                f"none of the {len(self.rejects)} images can be read; the first is {name}: {reason}"
            )


def _shard(spec: ShardSpec, sidecar: dict[str, Any]) -> Shard:
    return Shard(spec.tar_path.name, sidecar["samples"], sidecar["bytes"], sidecar["sha256"])
