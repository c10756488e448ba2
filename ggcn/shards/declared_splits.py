"""The split of each image, where a source declares it: in names of its files and folders, or in a list."""

import re
from collections import Counter
from dataclasses import replace

from ggcn.errors import UserError
from ggcn.shards.entry import Entry

WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def select(location: str, images: list[Entry], split: str) -> list[Entry]:
    """The images with their splits; those of one split if that is not empty. Raises UserError if it has none."""
    known: dict[str, str] = {}
    images = [image if image.split else _with_split(image, known) for image in images]
    if not split:
        return images
    wanted = WORDS.get(split, split)
    taken = [image for image in images if image.split == wanted]
    if not taken:
        found = ", ".join(f"{name} ({count})" for name, count in sorted(counts(images).items())) or "none"
        raise UserError(f"{location} declares no images of --split {split}; its splits: {found}")
    return taken


def counts(images: list[Entry]) -> Counter[str]:
    """Images in each declared split."""
    return Counter(image.split for image in images if image.split)


def _with_split(image: Entry, known: dict[str, str]) -> Entry:
    """By the name of the table or archive that holds the image, or the uppermost folders of the image's name."""
    place = image.container or image.name.rpartition("/")[0]
    if place not in known:
        known[place] = _by_container(place) if image.container else _by_folder(place)
    return replace(image, split=known[place]) if known[place] else image


def _by_container(path: str) -> str:
    """train-00000-of-00002.parquet, bedroom_train_lmdb, data_batch_1: the last word of the path that names a split."""
    if re.fullmatch(r"data_batch_\d(\.bin)?", path.rpartition("/")[2]):
        return "train"
    words = [WORDS[word] for word in re.split(r"[/_.-]", path.lower()) if word in WORDS]
    return words[-1] if words else ""


def _by_folder(path: str) -> str:
    return next((WORDS[part] for part in path.lower().split("/")[:2] if part in WORDS), "")
