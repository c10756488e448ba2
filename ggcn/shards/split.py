"""The folders of a build: all images, or the training images and the held-out ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn.errors import UserError
from ggcn.shards import color, sources
from ggcn.shards.crop import Options
from ggcn.shards.entry import Entry
from ggcn.shards.shard_spec import rank

HOLDOUT = "holdout"


@dataclass
class Part:
    """A folder of shards to be: the whole source, or what is held out of it, or the rest."""

    folder: Path
    source: sources.Source
    entries: list[Entry]
    options: Options
    claim: dict[str, Any]
    """what build.json and the manifest say the folder is built from"""


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the held-out set: a matter of its name alone, whatever lies beside it."""
    return rank(name, "holdout") < share * 2**64


def parts(source: sources.Source, out: Path, options: Options) -> list[Part]:
    """The folders to build, in order. Raises UserError if a side of the split is empty."""
    order = sorted(source.entries, key=lambda entry: rank(entry.name, options.shuffle_seed))
    described = {**options.identity(), "scales": list(options.scales)}
    claim = {**described, "color_space": color.SPACE, "images": len(order), "source": source.digest()}
    sides: dict[Path, list[Entry]] = {out / HOLDOUT: [], out: []} if options.holdout else {out: []}
    for entry in order:
        sides[out / HOLDOUT if is_held_out(entry.name, options.holdout) else out].append(entry)
    for folder, entries in sides.items():
        if not entries:
            raise UserError(f"of {len(order)} images none would come into {folder}; change --holdout")
    names = {out: "train", out / HOLDOUT: "holdout"}
    return [
        Part(folder, source, some, options, {**claim, "side": names[folder]})
        for folder, some in sides.items()
    ]
