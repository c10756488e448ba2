"""Parses `manifest.json` and validates every value in it.

A manifest may come from a foreign server, so nothing in it is used before it is validated: its names become paths and
parts of commands, its digests become names of files in a cache.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggcn import files
from ggcn.console import command_line
from ggcn.data.index_file import BLOCK, BYTE_RANGE, byte_range_problem, byte_ranges
from ggcn.data.manifest import NAME, REBUILD, VERSION, IndexFile, Manifest, Shards
from ggcn.errors import UserError

EXTENSIONS = ("png", "jpg", "webp")
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.tar")
INDEX_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.bin")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_BYTES = 1 << 60
MAX_SIDE = 65535  # pixels: JPEG's limit, the largest of the formats
MAX_OPTIONS_CHARS = 1 << 16


def load(folder: str | Path) -> Manifest:
    """Reads the manifest of a folder made by make_shards.

    Raises UserError when there is none or it is invalid.
    """
    path = Path(folder) / NAME
    try:
        text = files.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no shards in {folder} (there is no {NAME}); build them with "
            f"`{command_line('make-shards')} SOURCE {folder} --size N`"
        ) from None
    return parse(text, str(path), Path(folder))


def parse(text: str | bytes, name: str, folder: Path = Path()) -> Manifest:
    """The manifest in a file's text, validated; error messages name its origin `name`.

    Raises UserError when it is invalid.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        require(type(value) is dict, "it is no object")
        version = value.pop("version", None)
        if type(version) is int and version > VERSION:
            raise UserError(f"{name} is of a newer version than this program; update the program")
        require(type(version) is int and version >= 1, "it has no version")
        return _manifest(value, folder) if version == VERSION else _first_version(value, folder)
    except RecursionError:
        raise UserError(f"{name} is damaged (it is nested too deeply); {REBUILD}") from None
    except ValueError as error:
        raise UserError(f"{name} is damaged ({error}); {REBUILD}") from None


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    require(len(value) == len(pairs), "a key comes twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _manifest(value: dict[str, Any], folder: Path) -> Manifest:
    """A manifest of the current version. Raises ValueError for what make_shards does not write."""
    fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "index", "shards")
    _check_keys(value, fields, "it")
    shards, index = _shards(value.pop("shards")), value.pop("index")
    _check_keys(index, ("name", "bytes", "sha256"), "its index")
    require(_is_text(index["name"], INDEX_NAME), "its index has no plain file name")
    require(_is_text(index["sha256"], SHA256), "its index has no sha256")
    _check_values(value, shards)
    valid = _is_count(index["bytes"]) and index["bytes"] == BYTE_RANGE.itemsize * value["samples"]
    require(valid, "its index is not as long as its samples")
    return Manifest(**value, shards=shards, index=IndexFile(**index), folder=folder)


def _first_version(value: dict[str, Any], folder: Path) -> Manifest:
    """A manifest of version 1, where each shard holds its offsets and sizes. Raises ValueError."""
    fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "shards")
    _check_keys(value, fields, "it")
    rows = value.pop("shards")
    require(type(rows) is list, "its shards are no list")
    ranges_of_shards = [_pop_ranges(row) for row in rows]
    shards = _shards(rows)
    _check_values(value, shards)
    require(
        shards.samples.tolist() == [len(each) for each in ranges_of_shards],
        "it does not have one offset for each sample",
    )
    ranges = np.concatenate(ranges_of_shards)
    if problem := byte_range_problem(shards, ranges):
        raise ValueError(problem)
    return Manifest(**value, shards=shards, index=None, folder=folder, ranges=ranges)


def _pop_ranges(row: Any) -> np.ndarray:
    """Removes offsets and sizes from a shard of a manifest of version 1; returns them, BYTE_RANGE [samples]."""
    _check_keys(row, ("name", "samples", "bytes", "sha256", "offsets", "sizes"), "a shard")
    offsets, sizes = row.pop("offsets"), row.pop("sizes")
    for numbers in (offsets, sizes):
        require(type(numbers) is list and set(map(type, numbers)) <= {int}, "an offset or size is no integer")
    return byte_ranges(offsets, sizes)


def _shards(rows: Any) -> Shards:
    """The shards of a manifest. Raises ValueError for any that make_shards does not write.

    They are validated column by column, since there may be 100,000 of them.
    """
    require(type(rows) is list and bool(rows), "it has no shards")
    keys = ("name", "samples", "bytes", "sha256")
    expected = set(keys)
    require(
        all(type(row) is dict and row.keys() == expected for row in rows),
        "a shard does not have its four keys",
    )
    names, samples, sizes, digests = ([row[key] for row in rows] for key in keys)
    _check_texts(names, SHARD_NAME, "plain name of a tar")
    _check_texts(digests, SHA256, "sha256 of 64 digits")
    for numbers in (samples, sizes):
        require(set(map(type, numbers)) == {int}, "a shard's samples or bytes are no integer")
        require(min(numbers) > 0 and max(numbers) <= MAX_BYTES, "a shard's samples or bytes are out of range")
    shards = Shards.from_columns(names, samples, sizes, digests)
    # every image needs a header and at least one more block
    require(
        bool((shards.samples <= shards.bytes // (2 * BLOCK)).all()), "a shard is too short for its samples"
    )
    require(len(np.unique(shards.names)) == len(names), "two shards have one name")
    return shards


def _check_texts(values: list[Any], pattern: re.Pattern[str], what: str) -> None:
    require(set(map(type, values)) == {str}, f"a shard has no {what}")
    matches = map(pattern.fullmatch, values)
    invalid = next((value for value, match in zip(values, matches, strict=True) if match is None), None)
    require(invalid is None, f"{invalid!r:.60} is no {what}")


def _check_keys(value: Any, keys: Sequence[str], what: str) -> None:
    require(type(value) is dict, f"{what} is no object")
    require(value.keys() == set(keys), f"{what} does not have the keys {', '.join(keys)}")


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None


def _is_count(value: Any, maximum: int = MAX_BYTES) -> bool:
    return type(value) is int and 0 <= value <= maximum


def _check_values(value: dict[str, Any], shards: Shards) -> None:
    """Raises ValueError for a value outside its range, or totals that are not the sums over the shards."""
    require(_is_count(value["size"], MAX_SIDE) and value["size"] > 0, "its size is no number of pixels")
    require(_is_count(value["channels"]) and value["channels"] in (1, 3), "its channels are neither 1 nor 3")
    extension = value["extension"]
    require(type(extension) is str and extension in EXTENSIONS, "its extension is no known image format")
    require(_is_count(value["rejected"]), "its number of rejected images is out of range")
    # Python's integers cannot overflow
    totals = sum(shards.samples.tolist()), sum(shards.bytes.tolist())
    valid = _is_count(value["samples"]) and _is_count(value["bytes"])
    valid = valid and totals == (value["samples"], value["bytes"])
    require(valid, "its totals are not the sums over its shards")
    require(type(value["options"]) is dict and _is_plain(value["options"]), "its options are no plain values")
    require(len(json.dumps(value["options"])) <= MAX_OPTIONS_CHARS, "its options are too long")


def _is_plain(value: Any) -> bool:
    """Whether a JSON value holds only printable text and finite numbers."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return bool(np.isfinite(value))
    return value.isprintable() if isinstance(value, str) else True
