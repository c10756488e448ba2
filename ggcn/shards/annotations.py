"""What is said about images beside them: files next to each, as WebDataset has them, and lists for a whole data set.

The lists are those of CelebA (attributes, identities, partition), of FFHQ (authors and licences), and StyleGAN's
dataset.json (labels).
"""

import csv
import io
import json
import math
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ggcn.shards.entry import Entry, SideFile, Stamp, joined

SIDE_ENDINGS = (".txt", ".json", ".cls", ".caption")
MAX_VALUE_CHARS = 1 << 16
"""characters of one value as JSON; longer ones are left out"""
CELEBA_SPLITS = {"0": "train", "1": "validation", "2": "test"}
FFHQ_SPLITS = {"training": "train", "validation": "validation"}
FFHQ_KEYS = ("photo_url", "photo_title", "author", "license", "license_url")
Found = dict[str, tuple[str, dict[str, Any]]]
"""name of an image in a list -> its split and annotation"""


def attach_side_files(entries: Iterable[Entry], images: list[Entry]) -> list[Entry]:
    """The images with the files next to them that have their name and one of SIDE_ENDINGS."""
    by_stem: dict[str, list[Entry]] = {}
    for entry in entries:
        stem, ending = posixpath.splitext(entry.name)
        if ending in SIDE_ENDINGS:
            by_stem.setdefault(stem, []).append(entry)
    if not by_stem:
        return images
    return [_with_side_files(image, by_stem.get(posixpath.splitext(image.name)[0], [])) for image in images]


def _with_side_files(image: Entry, others: list[Entry]) -> Entry:
    if not others:
        return image
    side = tuple(
        SideFile(posixpath.splitext(each.name)[1][1:], each.path, each.offset, each.bytes) for each in others
    )
    stamp = joined([image.stamp, *(each.stamp for each in others)]) if image.kind == "file" else image.stamp
    return replace(image, side_files=side, stamp=stamp)


def parse_side_file(key: str, data: bytes) -> Any:
    """What a side file says: JSON as it is, a class as its number, all else as text."""
    text = data.decode(errors="replace")
    try:
        return json.loads(text) if key == "json" else int(text) if key == "cls" else text.strip()
    except (ValueError, RecursionError):
        return text.strip()


def plain(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation as JSON can keep it: without values that are missing, too long or neither numbers nor text."""
    result = {}
    for key, value in annotation.items():
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            value = _finite(value)
            text = json.dumps(value) if value is not None else ""
        if value not in (None, "") and len(text) <= MAX_VALUE_CHARS:
            result[str(key)] = value
    return result


def _finite(value: Any) -> Any:
    """A number that JSON knows, or a dict or list without those that it does not; None for all else."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, type(None))) else None


def apply_lists(images: list[Entry], lists: list[tuple[str, Stamp, bytes]]) -> list[Entry]:
    """The images with what `lists` (base name, stamp, content) say about them."""
    found: Found = {}
    for name, _, content in sorted(lists):
        try:
            parsed = LISTS[name](content)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue  # of this name, but of another format
        for image, (split, annotation) in parsed.items():
            old_split, old = found.get(image, ("", {}))
            found[image] = split or old_split, {**old, **annotation}
    stamp = joined([stamp for _, stamp, _ in lists])
    return [_with_list(image, stamp, found) for image in images] if found else images


def _with_list(image: Entry, stamp: Stamp, found: Found) -> Entry:
    parts = image.name.split("/")
    key = next((key for key in (image.name, "/".join(parts[-2:]), parts[-1]) if key in found), None)
    if key is None:
        return image
    split, annotation = found[key]
    merged = {**(image.annotation or {}), **annotation} or None
    return replace(image, split=split or image.split, annotation=merged, stamp=joined([image.stamp, stamp]))


def _celeba_attributes(content: bytes) -> Found:
    header, rows = _celeba_rows(content)
    return {
        name: ("", {"attributes": [header[i] for i, value in enumerate(values) if value == "1"]})
        for name, *values in rows
    }


def _celeba_identities(content: bytes) -> Found:
    return {name: ("", {"identity": int(value)}) for name, value in _celeba_rows(content)[1]}


def _celeba_partition(content: bytes) -> Found:
    return {name: (CELEBA_SPLITS[value], {}) for name, value in _celeba_rows(content)[1]}


def _celeba_rows(content: bytes) -> tuple[list[str], list[list[str]]]:
    """The names of columns, and the rows, of one of CelebA's lists as text or CSV."""
    text = content.decode()
    if "," in text.partition("\n")[0]:
        rows = list(csv.reader(io.StringIO(text)))
        return rows[0][1:], rows[1:]
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines[0]) == 1:  # the number of images, then the names of columns
        return lines[1], lines[2:]
    return [], lines


def _ffhq(content: bytes) -> Found:
    found: Found = {}
    for number, each in json.loads(content).items():
        about = {key: each["metadata"][key] for key in FFHQ_KEYS if key in each["metadata"]}
        found[f"{int(number):05d}.png"] = FFHQ_SPLITS.get(each["category"], ""), about
    return found


def _stylegan(content: bytes) -> Found:
    labels = json.loads(content)["labels"]
    return {name: ("", {"label": label}) for name, label in labels or []}


LISTS: dict[str, Callable[[bytes], Found]] = {
    "list_attr_celeba.txt": _celeba_attributes,
    "list_attr_celeba.csv": _celeba_attributes,
    "identity_CelebA.txt": _celeba_identities,
    "list_eval_partition.txt": _celeba_partition,
    "list_eval_partition.csv": _celeba_partition,
    "ffhq-dataset-v2.json": _ffhq,
    "dataset.json": _stylegan,
}
"""base names of lists -> what reads them"""
