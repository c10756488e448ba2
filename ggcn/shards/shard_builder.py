"""Builds one shard: reads its images, extracts their samples, writes the tar and its sidecar."""

import contextlib
import hashlib
import json
import tarfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from ggcn import files
from ggcn.shards import crop, sources
from ggcn.shards.crop import Box, Options
from ggcn.shards.entry import Entry
from ggcn.shards.pool import advance
from ggcn.shards.shard_spec import ShardSpec, name_hash

WRITE_BYTES = 4 << 20
"""of a tar, written at once"""
REQUESTS = 16
"""for images at URLs, at once in each worker"""


class SourceImage:
    """An image file from which samples of one or more sizes are extracted."""

    def __init__(self, location: str, entry: Entry, request: Future[bytes] | None = None) -> None:
        """`location`: of the source; `request`: for its bytes, if they were asked for already."""
        self.location, self.entry, self._request = location, entry, request
        self._decoded: dict[tuple[int, int], crop.Decoded] = {}

    @cached_property
    def _data(self) -> bytes:
        return self._request.result() if self._request else sources.read(self.location, self.entry)

    @cached_property
    def annotation(self) -> dict[str, Any]:
        """See `sources.annotation`."""
        return sources.annotation(self.location, self.entry)

    def samples(self, options: Options) -> list[tuple[Box, bytes]]:
        """See `crop.samples_of`. The file is read once, and decoded once at each requested scale."""
        return crop.samples_of(self._data, options, self._decoded)

    @cached_property
    def content_hash(self) -> str:
        """See `sources.content_hash`."""
        try:
            return sources.digest(self._data, self.annotation)
        except MemoryError:
            raise
        except Exception as error:
            return sources.unreadable(error)

    def pixels(self) -> int:
        """Width times height; 0 if it was not decoded."""
        return max((width * height for _, _, (width, height) in self._decoded.values()), default=0)

    def warnings(self) -> list[str]:
        """Warnings about an accepted image."""
        return sorted(
            {warning for image, _, _ in self._decoded.values() for warning in image.info["warnings"]}
        )


class ShardBuilder:
    """Collects the samples of a shard and writes it after its last image."""

    def __init__(self, spec: ShardSpec) -> None:
        self.spec = spec
        self.samples: list[tuple[str, Box, bytes]] = []
        self.rejects: list[tuple[str, str]] = []
        self.contents: list[str] = []
        self.pixels: list[int] = []
        self.warnings: list[tuple[str, str]] = []
        self.annotations: dict[str, dict[str, Any]] = {}

    def add(self, image: SourceImage) -> None:
        """Adds an image's samples; writes tar and sidecar after the shard's last image."""
        name = image.entry.name
        try:
            self.samples += [(name, box, data) for box, data in image.samples(self.spec.options)]
        except MemoryError:
            raise
        except Exception as error:
            self.rejects.append((name, crop.reject_reason(error)))
        else:
            self.warnings += [(name, warning) for warning in image.warnings()]
            if image.annotation:
                self.annotations[name] = image.annotation
        self.contents.append(image.content_hash)
        self.pixels.append(image.pixels())
        advance()
        if name == self.spec.entries[-1].name:
            self.write()

    def write(self) -> None:
        """Writes the tar (none if no image could be read), then the sidecar."""
        seed = self.spec.options.shuffle_seed
        # or crops of one image would follow each other; the images themselves are permuted already
        self.samples.sort(key=lambda sample: name_hash(sample[0], seed, *sample[1]))
        packed = write_tar(self.spec, [data for _, _, data in self.samples])
        facts = {**packed, "contents": self.contents, "pixels": self.pixels, "remarks": self.warnings}
        if self.annotations:
            facts["annotations"] = self.annotations
        write_sidecar(self.spec, self.samples, self.rejects, facts)
        self.spec.store_stamps(self.contents)
        self.samples.clear()


def write_shards(specs: list[ShardSpec]) -> None:
    """Writes shards of several sizes from the same images, or a single one; each image is read once.

    Raises OSError when the disk fails, `Cancelled` when the build is cancelled.
    """
    builders = [ShardBuilder(spec) for spec in specs]
    entries = {index: entry for spec in specs for index, entry in zip(spec.range, spec.entries, strict=True)}
    ordered = sorted(entries)
    images = source_images(specs[0].location, [entries[index] for index in ordered])
    with contextlib.closing(images):
        for index, image in zip(ordered, images, strict=True):
            for builder in builders:
                if index in builder.spec.range:
                    builder.add(image)


def source_images(location: str, entries: list[Entry]) -> Generator[SourceImage, None, None]:
    """The images of entries; those at URLs are requested ahead, REQUESTS at once."""
    if not any(entry.kind == "urls" for entry in entries):
        yield from (SourceImage(location, entry) for entry in entries)
        return
    pool, ahead = ThreadPoolExecutor(REQUESTS), deque[SourceImage]()
    try:
        for entry in entries:
            ahead.append(SourceImage(location, entry, pool.submit(sources.read, location, entry)))
            if len(ahead) > REQUESTS:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def write_sidecar(
    spec: ShardSpec,
    samples: list[tuple[str, Box, bytes]],
    rejects: list[tuple[str, str]],
    facts: dict[str, Any],
) -> None:
    """Writes `NNNNNN.json`, which marks the shard as finished and holds the sources of its samples."""
    record = {
        "slice": spec.digest(),
        "start": spec.range.start,
        "images": len(spec.entries),
        "counts": spec.counts,
        "first": spec.first,
        "samples": len(samples),
        **facts,
        "sources": [(name, box) for name, box, _ in samples],
        "rejects": rejects,
    }
    # not synced: a power cut costs no more than this shard, since half a sidecar is no JSON
    with files.atomic_write(spec.sidecar_path, sync_folder=False, sync_file=False) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def write_tar(spec: ShardSpec, images: list[bytes]) -> dict[str, Any]:
    """Writes the tar atomically; returns its bytes and sha256, and the samples' offsets and sizes."""
    if not images:
        spec.tar_path.unlink(missing_ok=True)
        return {"bytes": 0, "sha256": "", "offsets": [], "sizes": []}
    offsets, at, digest = [], 0, hashlib.sha256()
    with (
        files.atomic_write(spec.tar_path, sync_folder=False) as temporary,
        temporary.open("wb", WRITE_BYTES) as file,
    ):
        for header, data in tar_members(spec, images):
            offsets.append(at + len(header))
            member = header + data + bytes(-len(data) % tarfile.BLOCKSIZE)
            digest.update(member)
            at += file.write(member)
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(at + len(end)) % tarfile.RECORDSIZE)
        digest.update(end)
        at += file.write(end)
    sizes = [len(data) for data in images]
    return {"bytes": at, "sha256": digest.hexdigest(), "offsets": offsets, "sizes": sizes}


def tar_members(spec: ShardSpec, images: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Headers and images of a tar, the same as of webdataset's TarWriter, which takes long to import."""
    for index, data in enumerate(images, spec.first):
        info = tarfile.TarInfo(f"{index:09d}.{spec.options.format}")
        info.size, info.mode, info.uname, info.gname = len(data), 0o444, "ggcn", "ggcn"
        yield info.tobuf(tarfile.USTAR_FORMAT), data
