"""The splits of a build, each a folder of shards: all images, or the training images and the held-out ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn.errors import UserError
from ggcn.shards import color, sources
from ggcn.shards.crop import Options
from ggcn.shards.entry import Entry
from ggcn.shards.shard_spec import name_hash

HOLDOUT = "holdout"


BuildSpec = dict[str, Any]
"""what a folder of shards is built from: options and list of images, as in build.json and the manifest's options"""


@dataclass
class Split:
    """A folder of shards to be built, from all images of a source, or the training or held-out ones."""

    folder: Path
    source: sources.Source
    entries: list[Entry]
    options: Options
    build_spec: BuildSpec


def in_holdout(name: str, share: float) -> bool:
    """Whether an image belongs to the held-out set, which depends on its name alone."""
    return name_hash(name, "holdout") < share * 2**64


def plan_splits(source: sources.Source, out: Path, options: Options) -> list[Split]:
    """The splits to build, a held-out one first. Raises UserError if one has no images."""
    # images that can only be read one after another stay together, in their order; groups of them are permuted
    entries = sorted(
        source.entries, key=lambda entry: name_hash(entry.group or entry.name, options.shuffle_seed)
    )
    build_spec = {
        **options.identity(),
        "scales": list(options.scales),
        "color_space": color.SPACE,
        "images": len(entries),
        "source": source.digest(),
    }
    splits: dict[Path, list[Entry]] = {out / HOLDOUT: [], out: []} if options.holdout else {out: []}
    for entry in entries:
        held_out = options.holdout and in_holdout(entry.name, options.holdout)
        splits[out / HOLDOUT if held_out else out].append(entry)
    for folder, images in splits.items():
        if not images:
            raise UserError(f"of {len(entries)} images none would be in {folder}; change --holdout")
    names = {out: "train", out / HOLDOUT: "holdout"}
    return [
        Split(folder, source, images, options, {**build_spec, "side": names[folder]})
        for folder, images in splits.items()
    ]
