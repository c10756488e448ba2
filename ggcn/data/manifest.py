"""The manifest of a folder of shards: it is the data set.

`OUT/manifest.json` is written last by tools/make_shards.py and says all that training needs to know before
it opens a shard: how many samples, and what the bytes must hash to. Where each sample lies is in
`OUT/index.bin`, an array that all processes of a node map into memory instead of holding a copy each.

A manifest may come from a server that somebody else runs, so nothing in it is used before it was checked:
its names become paths and parts of commands, its digests become names of files in a cache.
"""

import hashlib
import json
import mmap
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ggcn import files
from ggcn.console import command_line
from ggcn.errors import UserError

NAME = "manifest.json"
INDEX = "index.bin"
VERSION = 2
PLACE = np.dtype([("offset", "<u8"), ("size", "<u4")])
"""one entry of the index: where an image's bytes begin in its tar, and how many there are"""
BLOCK = 512
"""bytes of a tar's header; an image's bytes are filled up to a multiple of it"""
EXTENSIONS = ("png", "jpg", "webp")
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.tar")
INDEX_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.bin")
SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_BYTES = 1 << 60
MOST_PIXELS = 65535  # along a side: JPEG's limit, the largest of the formats
MOST_OPTIONS = 1 << 16
REBUILD = "build the shards again"


@dataclass(frozen=True)
class Shard:
    """One tar of images."""

    name: str
    """file name inside the folder of the manifest"""
    samples: int
    bytes: int
    """size of the tar"""
    sha256: str


class Shards(Sequence[Shard]):
    """The shards of a data set, kept as columns: 100,000 of them take 6 MB instead of 40."""

    def __init__(
        self, names: np.ndarray, samples: np.ndarray, sizes: np.ndarray, digests: np.ndarray
    ) -> None:
        """`names`: bytes. `samples`, `sizes` (of the tars): int64. `digests`: uint8 [shards, 32]."""
        self.names, self.samples, self.bytes, self.digests = names, samples, sizes, digests

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "Shards":
        """The columns of some shards."""
        rows = [(s.name, s.samples, s.bytes, s.sha256) for s in shards]
        return cls.from_columns(*zip(*rows, strict=True))

    @classmethod
    def from_columns(
        cls, names: Sequence[str], samples: Sequence[int], sizes: Sequence[int], digests: Sequence[str]
    ) -> "Shards":
        """The columns out of Python's values."""
        return cls(
            np.array([name.encode() for name in names], dtype=np.bytes_),
            np.array(samples, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32),
        )

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    def __getitem__(self, index: int | slice) -> "Shard | Shards":
        if isinstance(index, slice):
            return Shards(self.names[index], self.samples[index], self.bytes[index], self.digests[index])
        digest = self.digests[index].tobytes().hex()
        return Shard(self.names[index].decode(), int(self.samples[index]), int(self.bytes[index]), digest)

    def __iter__(self) -> Iterator[Shard]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class IndexFile:
    """The file that says where every sample lies: an array of PLACE, shard after shard."""

    name: str
    bytes: int
    sha256: str


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
    shards: Shards
    index: IndexFile | None
    """None in a manifest of version 1, which holds the places itself"""
    folder: Path = field(default=Path(), compare=False)
    places: np.ndarray | None = field(default=None, compare=False, repr=False)
    """PLACE [samples] of a manifest of version 1"""

    @cached_property
    def hash(self) -> str:
        """Identity of the content: changes with any shard's bytes, not with the place it lies in."""
        # json.dumps of [size, channels, [[samples, sha256], ...]], without a list of all shards
        digest, before = hashlib.sha256(f"[{self.size}, {self.channels}, [".encode()), ""
        for samples, row in zip(self.counts.tolist(), self.shards.digests, strict=True):
            digest.update(f'{before}[{samples}, "{row.tobytes().hex()}"]'.encode())
            before = ", "
        digest.update(b"]]")
        return digest.hexdigest()

    @property
    def counts(self) -> np.ndarray:
        """Samples per shard, int64."""
        return self.shards.samples

    @cached_property
    def first(self) -> np.ndarray:
        """Per shard the number of its first sample, and at the end the number of all samples; int64."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json`, whole or not at all; the index must be there already."""
        fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "index")
        value = {name: getattr(self, name) for name in fields}
        value["index"] = self.index and asdict(self.index)
        shards = [asdict(shard) for shard in self.shards]
        files.write_json(folder / NAME, {"version": VERSION, **value, "shards": shards}, indent=None)


def places_of(offsets: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The index entries of one shard, PLACE [samples]. Raises ValueError for numbers that do not fit."""
    if len(offsets) != len(sizes):
        raise ValueError("it has not one offset and one size for each sample")
    try:
        offset, size = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)
    except OverflowError:
        raise ValueError("an offset or a size is out of range") from None
    require(
        bool((offset >= 0).all() and (size > 0).all() and (size < 1 << 32).all()), "a size is out of range"
    )
    places = np.empty(len(offset), PLACE)
    places["offset"], places["size"] = offset, size
    return places


def write_index(folder: Path, places: Iterable[np.ndarray]) -> IndexFile:
    """Writes `folder/index.bin`, whole or not at all, from arrays of PLACE, and returns what it is."""
    digest, size = hashlib.sha256(), 0
    with files.atomic_write(folder / INDEX) as temporary, temporary.open("wb") as file:
        for some in places:
            data = np.ascontiguousarray(some, PLACE).tobytes()
            digest.update(data)
            size += file.write(data)
    return IndexFile(INDEX, size, digest.hexdigest())


def load(folder: str | Path) -> Manifest:
    """Reads the manifest of a folder made by make_shards.

    Raises UserError when there is none or when it is not one of ours.
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
    """The manifest in a file's text, every value of it checked; `name` says in errors where it came from.

    Raises UserError when it is not one of ours.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
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


def require(condition: bool, why: str) -> None:
    """Raises ValueError saying `why` unless the condition holds."""
    if not condition:
        raise ValueError(why)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    require(len(value) == len(pairs), "a key comes twice")
    return value


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _manifest(value: dict[str, Any], folder: Path) -> Manifest:
    """A manifest of the current version. Raises ValueError for anything that is not as make_shards writes it."""
    fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "index", "shards")
    _check_keys(value, fields, "it")
    shards, index = _shards(value.pop("shards")), value.pop("index")
    _check_keys(index, ("name", "bytes", "sha256"), "its index")
    require(_is_text(index["name"], INDEX_NAME), "its index has no plain file name")
    require(_is_text(index["sha256"], SHA256), "its index has no sha256")
    _check_values(value, shards)
    same = _is_count(index["bytes"]) and index["bytes"] == PLACE.itemsize * value["samples"]
    require(same, "its index is not as long as its samples")
    return Manifest(**value, shards=shards, index=IndexFile(**index), folder=folder)


def _first_version(value: dict[str, Any], folder: Path) -> Manifest:
    """A manifest of version 1, where each shard holds its offsets and sizes. Raises ValueError."""
    fields = ("size", "channels", "extension", "samples", "bytes", "options", "rejected", "shards")
    _check_keys(value, fields, "it")
    rows = value.pop("shards")
    require(type(rows) is list, "its shards are no list")
    lists = [_lists(row) for row in rows]
    shards = _shards(rows)
    _check_values(value, shards)
    require(shards.samples.tolist() == [len(some) for some in lists], "it has not one offset for each sample")
    places = np.concatenate(lists)
    if problem := places_problem(shards, places):
        raise ValueError(problem)
    return Manifest(**value, shards=shards, index=None, folder=folder, places=places)


def _lists(row: Any) -> np.ndarray:
    """Takes offsets and sizes out of a shard of a manifest of version 1."""
    _check_keys(row, ("name", "samples", "bytes", "sha256", "offsets", "sizes"), "a shard")
    offsets, sizes = row.pop("offsets"), row.pop("sizes")
    for numbers in (offsets, sizes):
        require(type(numbers) is list and set(map(type, numbers)) <= {int}, "an offset or size is no integer")
    return places_of(offsets, sizes)


def _shards(rows: Any) -> Shards:
    """The shards of a manifest, in columns. Raises ValueError for any that make_shards cannot have written.

    Column by column, since there may be 100,000 of them.
    """
    require(type(rows) is list and bool(rows), "it has no shards")
    keys = ("name", "samples", "bytes", "sha256")
    wanted = set(keys)
    require(all(type(row) is dict and row.keys() == wanted for row in rows), "a shard has not its four keys")
    names, samples, sizes, digests = ([row[key] for row in rows] for key in keys)
    _check_texts(names, SHARD_NAME, "plain name of a tar")
    _check_texts(digests, SHA256, "sha256 of 64 digits")
    for numbers in (samples, sizes):
        require(set(map(type, numbers)) == {int}, "a shard's samples or bytes are no integer")
        require(
            min(numbers) > 0 and max(numbers) <= MOST_BYTES, "a shard's samples or bytes are out of range"
        )
    shards = Shards.from_columns(names, samples, sizes, digests)
    # every image takes a header and at least one more block
    require(
        bool((shards.samples <= shards.bytes // (2 * BLOCK)).all()), "a shard is too short for its samples"
    )
    require(len(np.unique(shards.names)) == len(names), "two shards have one name")
    return shards


def _check_texts(values: list[Any], pattern: re.Pattern[str], what: str) -> None:
    require(set(map(type, values)) == {str}, f"a shard has no {what}")
    matches = map(pattern.fullmatch, values)
    wrong = next((value for value, match in zip(values, matches, strict=True) if match is None), None)
    require(wrong is None, f"{wrong!r:.60} is no {what}")


def _check_keys(value: Any, keys: Sequence[str], what: str) -> None:
    require(type(value) is dict, f"{what} is no object")
    require(value.keys() == set(keys), f"{what} has not the keys {', '.join(keys)}")


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None


def _is_count(value: Any, most: int = MOST_BYTES) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_values(value: dict[str, Any], shards: Shards) -> None:
    """Raises ValueError for a value outside its range, or totals that are not the sums over the shards."""
    require(_is_count(value["size"], MOST_PIXELS) and value["size"] > 0, "its size is no number of pixels")
    require(_is_count(value["channels"]) and value["channels"] in (1, 3), "its channels are neither 1 nor 3")
    extension = value["extension"]
    require(type(extension) is str and extension in EXTENSIONS, "its extension is no known image format")
    require(_is_count(value["rejected"]), "its number of rejected images is out of range")
    # in Python's integers, which cannot overflow
    totals = sum(shards.samples.tolist()), sum(shards.bytes.tolist())
    same = _is_count(value["samples"]) and _is_count(value["bytes"])
    same = same and totals == (value["samples"], value["bytes"])
    require(same, "its totals are not the sums over its shards")
    require(type(value["options"]) is dict and _is_plain(value["options"]), "its options are no plain values")
    require(len(json.dumps(value["options"])) <= MOST_OPTIONS, "its options are too long")


def _is_plain(value: Any) -> bool:
    """Whether a JSON value holds only text that a terminal shows as it stands, and finite numbers."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return bool(np.isfinite(value))
    return value.isprintable() if isinstance(value, str) else True


def places_problem(shards: Shards, places: np.ndarray) -> str:
    """What is wrong with the index entries of some shards; empty if each image lies in its tar, one after another.

    `places`: PLACE [samples of the shards].
    """
    first = np.concatenate([[0], np.cumsum(shards.samples)])[:-1]
    bytes_ = np.repeat(shards.bytes, shards.samples)
    offset, size = places["offset"].astype(np.int64), places["size"].astype(np.int64)
    end = offset + size
    least = np.concatenate([[0], end[:-1]]) + BLOCK
    least[first] = BLOCK
    wrong = (offset < least) | (size == 0) | (offset > bytes_) | (end > bytes_)
    if not wrong.any():
        return ""
    sample = int(wrong.argmax())
    shard = int(np.searchsorted(first, sample, side="right")) - 1
    return f"sample {sample - int(first[shard])} cannot lie where it says in shard {shards[shard].name}"


def map_index(file: int, samples: int, name: str) -> np.ndarray:
    """The index in an open file, mapped into memory read-only: PLACE [samples].

    Raises UserError, which calls the file `name`, when it has not the size for that.
    """
    size = os.fstat(file).st_size
    if size != samples * PLACE.itemsize:
        raise UserError(f"{name} has {size} bytes, not {samples * PLACE.itemsize}; restore it or {REBUILD}")
    memory = mmap.mmap(file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    return np.frombuffer(memory, PLACE)


def open_index(manifest: Manifest) -> np.ndarray:
    """Where every sample of a local data set lies, PLACE [samples]. Raises UserError when it does not fit."""
    if manifest.index is None:
        assert manifest.places is not None
        return manifest.places
    path = manifest.folder / manifest.index.name
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hang it
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it or {REBUILD}") from None
    try:
        return map_index(file, manifest.samples, str(path))
    finally:
        os.close(file)


def channels(manifests: Sequence[Manifest]) -> int:
    """Channels of the images. Raises UserError when folders of a mixture differ in that."""
    found = {manifest.channels for manifest in manifests}
    if len(found) > 1:
        raise UserError("data.mixture has grey and colour shards; build them all in one way")
    return found.pop()


def check_files(manifest: Manifest, full: bool = False) -> None:
    """Compares the index's and every shard's size, and its sha256 if `full`, with the manifest.

    Raises UserError naming the first file that is missing or differs.
    """
    check_index(manifest, full)
    check_shards(manifest.folder, manifest.shards, full)


def check_index(manifest: Manifest, full: bool = False) -> None:
    """Compares the index's size with the manifest, and if `full` its sha256 and every entry with the shards.

    Raises UserError when it is missing or differs.
    """
    places = open_index(manifest)
    if full and manifest.index is not None:
        check_file(manifest.folder / manifest.index.name, manifest.index, True, "index")
    for start in range(0, len(manifest.shards) if full else 0, 1024):  # some MB at a time
        shards = manifest.shards[start : start + 1024]
        here = places[manifest.first[start] : manifest.first[start + len(shards)]]
        if problem := places_problem(shards, here):
            raise UserError(f"the index of {manifest.folder} is damaged ({problem}); {REBUILD}")


def check_shards(folder: Path, shards: Shards, full: bool = False) -> None:
    """Compares the size of some shards of a folder, and their sha256 if `full`, with what the manifest says.

    Raises UserError naming the first that is missing or differs.
    """
    names, sizes = shards.names.tolist(), shards.bytes.tolist()
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        path = os.path.join(folder, name.decode())
        if full or not _has_size(path, size):
            check_file(path, shards[number], full, "shard")


def _has_size(path: str, size: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == size and stat.S_ISREG(status.st_mode)


def check_file(path: Path | str, wanted: Shard | IndexFile, full: bool, what: str) -> None:
    """Compares a file's size, and its sha256 if `full`, with the manifest. Raises UserError naming it."""
    mend = f"restore it or {REBUILD}"
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} {path} is missing; {mend}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{what} {path} is no file; {mend}")
    if status.st_size != wanted.bytes:
        raise UserError(f"{what} {path} has {status.st_size} bytes, not {wanted.bytes}; {mend}")
    if full and files.sha256(Path(path)) != wanted.sha256:
        raise UserError(f"{what} {path} was altered (sha256 differs); {mend}")
