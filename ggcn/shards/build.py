"""Builds shards out of images, on all cores, and resumable.

A shard is a slice of the source's list of images, permuted once by a hash, so that its content depends on the
source and the options alone. One shard is one task. `NNNNNN.tar` is written first and `NNNNNN.json` last:
where both are there and fit the slice, a later build skips the shard. `build.json` says from the beginning
what a folder is being built from; `index.bin` and, at the very end, `manifest.json` make it a data set.

A shard whose images have changed since is built again. Its sidecar has the SHA-256 of their files; as an extended
attribute it has what the file system said of them, and images of which that is still so are not read again.
"""

import dataclasses
import errno
import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ggcn import files, locks
from ggcn.data import index_file, manifest, manifest_file, verification
from ggcn.data.manifest import Manifest, Shard, Shards
from ggcn.distributed.lanes import Key, bits
from ggcn.errors import UserError
from ggcn.shards import color, crop, image_file, sources
from ggcn.shards.crop import Box, Options
from ggcn.shards.pool import Pool, progress_bar, tick

CLAIM = "build.json"
HOLDOUT = "holdout"
REJECTED = "rejected.jsonl"
STAMPS = "user.ggcn.sources"
VERSION = 2


@dataclass(frozen=True)
class Slice:
    """A shard to be: its part of the source's list."""

    folder: Path
    index: int
    first: int
    """global index of its first sample"""
    place: str
    range: range
    """of the folder's images"""
    entries: list[sources.Entry]
    counts: list[int]
    """samples per image, by the header alone"""
    options: Options

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.index:06d}.tar"

    @property
    def sidecar(self) -> Path:
        return self.tar.with_suffix(".json")

    def digest(self) -> str:
        """Identity of the list of images that the shard is made of, and of how; their content stands beside it."""
        names = [entry.name for entry in self.entries]
        text = json.dumps([VERSION, self.first, names, self.options.identity()])
        return hashlib.sha256(text.encode()).hexdigest()

    def stamps(self) -> bytes:
        """Identity of what the file system says of the images; empty if it proves nothing about one of them."""
        stamps = [entry.stamp for entry in self.entries]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest().encode() if all(stamps) else b""

    def remember_stamps(self, contents: list[str]) -> None:
        """Keeps the stamps of images that have these contents, where the file system has attributes."""
        if not hasattr(os, "setxattr") or any(map(sources.is_unreadable, contents)):
            return  # what could not be read is tried again
        if stamps := self.stamps():
            with suppress(OSError):
                os.setxattr(self.sidecar, STAMPS, stamps)

    def has_same_stamps(self) -> bool:
        """Whether no image can have changed since `remember_stamps`. False where that cannot be known."""
        try:
            return bool(stamps := self.stamps()) and os.getxattr(self.sidecar, STAMPS) == stamps
        except (OSError, AttributeError):
            return False

    def record(self) -> dict[str, Any] | None:
        """The sidecar of the finished shard; None if the shard is not there as this slice wants it."""
        try:
            record: dict[str, Any] = json.loads(files.read_bytes(self.sidecar))
            whole = not record["samples"] or self.tar.stat().st_size == record["bytes"]
            return record if whole and record["slice"] == self.digest() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Picture:
    """An image file that samples of one or more sizes are cut out of."""

    def __init__(self, place: str, entry: sources.Entry) -> None:
        self.place, self.entry = place, entry
        self._known: dict[tuple[int, int], crop.Decoded] = {}

    @cached_property
    def _data(self) -> bytes:
        return sources.read(self.place, self.entry)

    def samples(self, options: Options) -> list[tuple[Box, bytes]]:
        """See `crop.samples_of`. The file is read once, and decoded once at each scale that is asked for."""
        return crop.samples_of(self._data, options, self._known)

    @cached_property
    def content(self) -> str:
        """See `sources.content`."""
        try:
            return sources.digest(self._data)
        except MemoryError:
            raise
        except Exception as error:
            return sources.unreadable(error)

    def pixels(self) -> int:
        """Width times height; 0 if it was never decoded."""
        return max((width * height for _, _, (width, height) in self._known.values()), default=0)

    def remarks(self) -> list[str]:
        """What is to be said of the image, although it was taken."""
        return sorted({remark for image, _, _ in self._known.values() for remark in image.info["remarks"]})


class ShardBuilder:
    """A shard in the making."""

    def __init__(self, part: Slice) -> None:
        self.part = part
        self.samples: list[tuple[str, Box, bytes]] = []
        self.rejects: list[tuple[str, str]] = []
        self.contents: list[str] = []
        self.pixels: list[int] = []
        self.remarks: list[tuple[str, str]] = []

    def add(self, picture: Picture) -> None:
        """Takes an image's samples; writes tar and sidecar after the slice's last image."""
        name = picture.entry.name
        try:
            self.samples += [(name, box, data) for box, data in picture.samples(self.part.options)]
        except MemoryError:
            raise
        except Exception as error:
            self.rejects.append((name, crop.reason(error)))
        else:
            self.remarks += [(name, remark) for remark in picture.remarks()]
        self.contents.append(picture.content)
        self.pixels.append(picture.pixels())
        tick()
        if name == self.part.entries[-1].name:
            self.write()

    def write(self) -> None:
        """Writes the tar (none if no image of the slice could be read), then the sidecar."""
        seed = self.part.options.shuffle_seed
        # squares of one image would lie side by side; the images themselves are permuted already
        self.samples.sort(key=lambda sample: rank(sample[0], seed, *sample[1]))
        packed = pack(self.part, [data for _, _, data in self.samples])
        facts = {**packed, "contents": self.contents, "pixels": self.pixels, "remarks": self.remarks}
        write_sidecar(self.part, self.samples, self.rejects, facts)
        self.part.remember_stamps(self.contents)
        self.samples.clear()


def write_shards(group: list[Slice]) -> None:
    """Writes shards of several sizes out of the same images, or a single one.

    Raises OSError when the disk fails, `Stopped` when the build is being given up.
    """
    shelves = [ShardBuilder(part) for part in group]
    for index in sorted({index for part in group for index in part.range}):
        wanting = [shelf for shelf in shelves if index in shelf.part.range]
        part = wanting[0].part
        picture = Picture(part.place, part.entries[index - part.range.start])
        for shelf in wanting:
            shelf.add(picture)


def write_sidecar(
    part: Slice,
    samples: list[tuple[str, Box, bytes]],
    rejects: list[tuple[str, str]],
    facts: dict[str, Any],
) -> None:
    """Writes `NNNNNN.json`, which says that the shard is done and where its samples came from."""
    record = {
        "slice": part.digest(),
        "start": part.range.start,
        "images": len(part.entries),
        "counts": part.counts,
        "first": part.first,
        "samples": len(samples),
        **facts,
        "sources": [(name, box) for name, box, _ in samples],
        "rejects": rejects,
    }
    # a power cut that takes it, or the tar, back costs no more than this shard
    with files.atomic_write(part.sidecar, listed=False) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def pack(part: Slice, images: list[bytes]) -> dict[str, Any]:
    """Writes the tar, whole or not at all, and says its bytes, sha256 and where the samples lie in it."""
    if not images:
        part.tar.unlink(missing_ok=True)
        return {"bytes": 0, "sha256": "", "offsets": [], "sizes": []}
    offsets, at, digest = [], 0, hashlib.sha256()
    with files.atomic_write(part.tar, listed=False) as temporary, temporary.open("wb") as file:
        for header, data in members(part, images):
            offsets.append(at + len(header))
            piece = header + data + bytes(-len(data) % tarfile.BLOCKSIZE)
            digest.update(piece)
            at += file.write(piece)
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(at + len(end)) % tarfile.RECORDSIZE)
        digest.update(end)
        at += file.write(end)
    sizes = [len(data) for data in images]
    return {"bytes": at, "sha256": digest.hexdigest(), "offsets": offsets, "sizes": sizes}


def members(part: Slice, images: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Headers and images of a tar, as webdataset's TarWriter makes them, which takes long to import."""
    for index, data in enumerate(images, part.first):
        info = tarfile.TarInfo(f"{index:09d}.{part.options.format}")
        info.size, info.mode, info.uname, info.gname = len(data), 0o444, "ggcn", "ggcn"
        yield info.tobuf(tarfile.USTAR_FORMAT), data


@dataclass
class Part:
    """A folder of shards to be: the whole source, or what is held out of it, or the rest."""

    folder: Path
    source: sources.Source
    entries: list[sources.Entry]
    options: Options
    claim: dict[str, Any]
    """what build.json and the manifest say the folder is built from"""


@dataclass(frozen=True)
class Built:
    """A finished folder of shards."""

    manifest: Manifest
    rejects: list[tuple[str, str]]
    """(source, reason)"""
    enlarged: int
    """samples whose square had fewer pixels than the sample"""


def rank(name: str, *key: Key) -> int:
    """64 bits to order images by, or to choose some; names may hold bytes that are no text."""
    return bits(*key, ascii(name))


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the held-out set: a matter of its name alone, whatever lies beside it."""
    return rank(name, "holdout") < share * 2**64


def parts(source: sources.Source, out: Path, options: Options) -> list[Part]:
    """The folders to build, in order. Raises UserError if a side of the split is empty."""
    order = sorted(source.entries, key=lambda entry: rank(entry.name, options.shuffle_seed))
    described = {**options.identity(), "scales": list(options.scales)}
    claim = {**described, "color_space": color.SPACE, "images": len(order), "source": source.digest()}
    sides: dict[Path, list[sources.Entry]] = {out / HOLDOUT: [], out: []} if options.holdout else {out: []}
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


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two claims, in words; empty if nothing does."""
    keys = [key for key in new if old.get(key) != new[key] and key not in ("source", "images")]
    words = [f"--{key.replace('_', '-')} {_word(old.get(key))} (now {_word(new[key])})" for key in keys]
    if old.get("source") != new["source"]:
        words.append(f"another list of images ({old.get('images')} images, now {new['images']})")
    return ", ".join(words)


def _word(value: Any) -> str:
    return "default" if value is None else str(value)


def claim(part: Part) -> None:
    """Makes the folder this build's, and clears what a killed build left half written.

    Raises UserError when it holds something else, or shards of other options or of another source.
    """
    path = part.folder / CLAIM
    part.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(not name.startswith(".tmp-") for name in os.listdir(part.folder)):
            raise UserError(f"{part.folder} is not empty and holds no shards of ours; give another OUT")
        files.write_json(path, {"version": VERSION, **part.claim})
    if other := differences(_read_claim(path), part.claim):
        raise UserError(f"{part.folder} was built with {other}; give another OUT, or delete it to build anew")


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(files.read_bytes(path))
        version = value.pop("version")
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged; delete {path.parent} to build it again") from None
    if version != VERSION:
        raise UserError(
            f"{path.parent} is of another version of make_shards, which made other pixels (this one converts "
            f"colours to sRGB); give another OUT, or delete it to build it again"
        )
    return value


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds OUT for this process and its workers. Raises UserError when another build is at work there."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.exclusive_lock(out / CLAIM, with_children=True))
        except locks.Taken:
            raise UserError(f"another make_shards is at work in {out}; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise  # else nobody can build there: at most find that everything is there
        yield


def complete(part: Part) -> Manifest | None:
    """The manifest of a folder that is all there; None otherwise."""
    try:
        found = manifest_file.load(part.folder)
        verification.check_files(found)
    except UserError:
        return None
    # a manifest of version 1 is written again, from the sidecars
    return found if found.options == part.claim and found.index else None


def cut_list(counts: list[int], most: int) -> list[range]:
    """Cuts a list of images with `counts` samples each into runs of at most `most` samples (or one image)."""
    starts, held = [0], 0
    for index, samples in enumerate(counts):
        if held + samples > most and index > starts[-1]:
            starts.append(index)
            held = 0
        held += samples
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


def slices(part: Part, counts: list[int]) -> list[Slice]:
    """The shards of a folder; counts: samples per image."""
    firsts = np.cumsum([0, *counts]).tolist()
    runs = cut_list(counts, part.options.samples_per_shard(sum(counts)))
    return [
        Slice(
            part.folder,
            index,
            firsts[run.start],
            part.source.place,
            run,
            part.entries[run.start : run.stop],
            counts[run.start : run.stop],
            part.options,
        )
        for index, run in enumerate(runs)
    ]


def finished(part: Part) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """The shards that are there, of images as they were then, cut as they were then; and their sidecars."""
    for path in sorted(part.folder.glob("[0-9]*.json")):
        try:
            old = json.loads(files.read_bytes(path))
            run = range(old["start"], old["start"] + old["images"])
            entries = part.entries[run.start : run.stop]
            place, counts = part.source.place, old["counts"]
            piece = Slice(
                part.folder, int(path.stem), old["first"], place, run, entries, counts, part.options
            )
            record = piece.record()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a sidecar of this version
        if record is not None:
            yield piece, record


@dataclass(frozen=True)
class Changes:
    """Images whose shards have to be built again."""

    edited: set[str]
    """names of images with other bytes than in the shard"""
    readable: set[str]
    """names of images that were left out, and what they were left out for is no more"""
    oversized: set[str]
    """names of images that were taken, and have more pixels than are allowed now"""

    @cached_property
    def names(self) -> set[str]:
        """All of them."""
        return self.edited | self.readable | self.oversized

    def touch(self, piece: Slice) -> bool:
        """Whether a shard has one of the images."""
        return bool(self.names) and any(entry.name in self.names for entry in piece.entries)


def find_changes(found: list[Part], pool: Pool) -> Changes:
    """Compares finished shards with the images as they are now. Only images with other stamps are read."""
    changes, suspects = Changes(set(), set(), set()), []
    for part in found:
        for piece, record in finished(part):
            most = part.options.max_pixels
            changes.readable.update(
                name for name, why in record["rejects"] if image_file.can_be_read_now(why, most)
            )
            sizes = zip(piece.entries, record["pixels"], strict=True)
            changes.oversized.update(entry.name for entry, pixels in sizes if pixels > most)
            if not piece.has_same_stamps():
                suspects.append((piece, record["contents"]))
    entries = {entry.name: entry for piece, _ in suspects for entry in piece.entries}
    now = read_contents(found[0].source.place, list(entries.values()), pool)
    for piece, contents in suspects:
        edited = {
            entry.name
            for entry, content in zip(piece.entries, contents, strict=True)
            if now[entry.name] != content
        }
        changes.edited.update(edited)
        if not edited:
            piece.remember_stamps(contents)
    return changes


def read_contents(place: str, entries: list[sources.Entry], pool: Pool) -> dict[str, str]:
    """Name -> content of image files; see `sources.content`."""
    if not entries:
        return {}
    with progress_bar(len(entries), 0, "comparing", " images") as bar:
        lists = pool.run(partial(_contents, place), chunks(entries), bar)
    return dict(zip((entry.name for entry in entries), (one for some in lists for one in some), strict=True))


def _contents(place: str, entries: list[sources.Entry]) -> list[str]:
    contents = []
    for entry in entries:
        contents.append(sources.content(place, entry))
        tick()
    return contents


def chunks(entries: list[sources.Entry]) -> list[list[sources.Entry]]:
    """Tasks that are worth sending to a worker."""
    return [entries[start : start + 64] for start in range(0, len(entries), 64)]


def announce(changes: Changes, planned: list[Slice]) -> None:
    """Says that a finished data set is about to become another one."""
    if changes.edited:
        print(f"{len(changes.edited)} images changed since their shards were built")
    if changes.readable:
        print(f"{len(changes.readable)} images that were left out can be read now")
    if changes.oversized:
        print(f"{len(changes.oversized)} images have more pixels than --max-pixels allows now")
    if changes.names:
        again = sum(map(changes.touch, planned))
        print(
            f"{again} of {len(planned)} shards are built again; with other pixels the data set is another one, "
            "and runs on the old one do not continue on it",
            flush=True,
        )


def discard(part: Part, planned: list[Slice], changes: Changes) -> None:
    """Removes what is no longer so: the manifest over shards that change, and shards beyond the last one."""
    if any(map(changes.touch, planned)):
        for name in (manifest.NAME, REJECTED):
            (part.folder / name).unlink(missing_ok=True)
    for path in part.folder.glob("[0-9]*"):
        if path.suffix in (".tar", ".json") and path.stem.isdigit() and int(path.stem) >= len(planned):
            path.unlink(missing_ok=True)


def groups(planned: list[list[Slice]], changes: Changes) -> list[list[Slice]]:
    """The shards that are not there yet, or of other images, of several sizes out of the same images, as tasks.

    A task has a shard of the size that has fewest, and those of the other sizes that begin within its images:
    their images are read once, save a few at the end.
    """
    coarse = min(planned, key=len)
    tasks = [
        [piece for pieces in planned for piece in pieces if piece.range.start in task.range]
        for task in coarse
    ]
    missing = [[piece for piece in task if piece.record() is None or changes.touch(piece)] for task in tasks]
    return [task for task in missing if task]


def count_samples(part: Part, pool: Pool, changes: Changes) -> list[int]:
    """Samples per image, before any is decoded: one, but for a grid. What finished shards say is not read again."""
    if part.options.crop != "grid":
        return [1] * len(part.entries)
    counts = dict.fromkeys((entry.name for entry in part.entries), -1)
    for piece, _ in finished(part):
        counts.update(zip((entry.name for entry in piece.entries), piece.counts, strict=True))
    unknown = [entry for entry in part.entries if counts[entry.name] < 0 or entry.name in changes.names]
    if unknown:
        with progress_bar(len(unknown), 0, "sizes", " images") as bar:
            place = dataclasses.replace(part.source, entries=[])  # a task carries its own entries alone
            lists = pool.run(partial(crop.count, place, part.options), chunks(unknown), bar)
        found = (samples for some in lists for samples in some)
        counts.update(zip((entry.name for entry in unknown), found, strict=True))
    return list(counts.values())


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
                yield index_file.places_of(record["offsets"], record["sizes"])
        if not self.shards:
            name, why = self.rejects[0]
            raise UserError(f"none of the {len(self.rejects)} images can be read; the first is {name}: {why}")


def _shard(piece: Slice, record: dict[str, Any]) -> Shard:
    return Shard(piece.tar.name, record["samples"], record["bytes"], record["sha256"])


def build(source: sources.Source, wanted: dict[Path, Options], workers: int) -> list[Built] | None:
    """Builds the shards of `source` in each folder that is wanted (and its `holdout`), as if it were the only one.

    Finishes a build that was killed, and builds shards again whose images changed. The options may differ in
    size alone. Returns what was built, a held-out set before the rest; None if everything was there before.
    Raises UserError (see `claim`, `parts`, `assemble`) and OSError when the disk fails.
    """
    todo = [parts(source, out, options) for out, options in wanted.items()]
    for part in (part for sides in todo for part in reversed(sides)):
        claim(part)
    with ExitStack() as held:
        for out in wanted:
            held.enter_context(alone(out))
        for leftover in (path for sides in todo for part in sides for path in part.folder.glob(".tmp-*")):
            leftover.unlink(missing_ok=True)
        everything = [part for sides in todo for part in sides]
        with Pool(min(workers, len(source.entries))) as pool:
            changes = find_changes(everything, pool)
            planned = [[slices(part, count_samples(part, pool, changes)) for part in sides] for sides in todo]
            tasks = [
                task
                for same_images in zip(*planned, strict=True)
                for task in groups(list(same_images), changes)
            ]
            if not tasks and all(complete(part) for part in everything):
                return None
            pieces_of_all = [pieces for sides in planned for pieces in sides]
            announce(changes, [piece for pieces in pieces_of_all for piece in pieces])
            for part, pieces in zip(everything, pieces_of_all, strict=True):
                discard(part, pieces, changes)
            write_missing(tasks, sum(len(part.entries) for part in everything), pool)
        pairs = [zip(sides, some, strict=True) for sides, some in zip(todo, planned, strict=True)]
        return [assemble(part, pieces) for some in pairs for part, pieces in some]


def write_missing(tasks: list[list[Slice]], images: int, pool: Pool) -> None:
    """Writes the shards of the tasks; images: those of all shards, finished ones too."""
    left = sum(len(piece.entries) for task in tasks for piece in task)
    with progress_bar(images, images - left, "images", " images") as bar:
        pool.run(write_shards, tasks, bar)
