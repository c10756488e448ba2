"""Builds one shard: reads its images, cuts their samples, writes the tar and its sidecar."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ggcn import files
from ggcn.shards import crop, sources
from ggcn.shards.crop import Box, Options
from ggcn.shards.entry import Entry
from ggcn.shards.pool import tick
from ggcn.shards.shard_spec import Slice, rank


class Picture:
    """An image file that samples of one or more sizes are cut out of."""

    def __init__(self, place: str, entry: Entry) -> None:
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
