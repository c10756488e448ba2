"""Checks a folder of shards down to the bytes of each sample."""

import dataclasses
import functools
import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ggcn import files
from ggcn.data import index_file, manifest_file
from ggcn.data.decoding import FORMATS
from ggcn.data.manifest import NAME as MANIFEST
from ggcn.data.manifest import IndexFile, Manifest, Shard
from ggcn.errors import UserError
from ggcn.shards.assembly import REJECTED
from ggcn.shards.build_spec import BUILD_SPEC
from ggcn.shards.pool import Pool, advance, progress_bar
from ggcn.shards.splits import HOLDOUT

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\0\0\x80", b"\x28\xb5\x2f\xfd")
"""how gzip, bzip2, xz, lzma and zstd files begin, which webdataset would unpack"""


def read_tar(path: Path, extension: str, size: int) -> list[bytes]:
    """The images of a tar of `size` bytes, as webdataset reads them.

    Raises ValueError for a tar that would become larger in memory than on the disk, and what webdataset and
    tarfile raise.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with files.open_regular(path) as stream:
        check_members(stream, size)
        stream.seek(0)
        members = tar_file_expander([{"url": str(path), "stream": stream}])
        return [sample.get(extension, b"") for sample in group_by_keys(members)]


def check_members(stream: BinaryIO, size: int) -> None:
    """Raises ValueError unless a tar is uncompressed and its members are complete files within its first `size` bytes;
    TarError for what is no tar."""
    if stream.read(8).startswith(COMPRESSED):
        raise ValueError("it is compressed")
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if member.issparse() or (member.isreg() and member.offset_data + member.size > size):
                raise ValueError(f"{member.name} is larger than its space in the shard")


@functools.lru_cache(maxsize=2)
def open_folder(folder: Path) -> tuple[Manifest, np.ndarray | None]:
    """A folder's manifest and index, once for each process; None for an index that is missing or too short.

    Raises UserError without a manifest.
    """
    manifest = manifest_file.load(folder)
    try:
        return manifest, index_file.open_index(manifest)
    except UserError:
        return manifest, None


def check_samples(manifest: Manifest, decode: bool, shard: Shard, ranges: np.ndarray) -> Iterator[str]:
    """Problems inside a shard: its tar, its samples' byte ranges, and its images if `decode`."""
    path = manifest.folder / shard.name
    try:
        images = read_tar(path, manifest.extension, shard.bytes)
    except Exception as error:
        why = str(error.args[0] if error.args else error).split(" @ ")[0]
        yield f"{path}: webdataset cannot read it ({why})"
        return
    if len(images) != shard.samples:
        yield f"{path}: {len(images)} samples instead of {shard.samples}"
    for index, (image, data) in enumerate(zip(images, read_ranges(path, ranges), strict=False)):
        if image != data:
            yield f"{path}: sample {index} is not where the index says"
        elif decode and (problem := undecodable(data, manifest.size, manifest.extension)):
            yield f"{path}: sample {index} {problem}"


def read_ranges(path: Path, ranges: np.ndarray) -> Iterator[bytes]:
    """The bytes of each sample's range."""
    with files.open_regular(path) as file:
        for offset, size in ranges.tolist():
            file.seek(offset)
            yield file.read(size)


def undecodable(data: bytes, size: int, extension: str) -> str:
    """Why a file is not a sample of size x size pixels in RGB, in the format of `extension`; empty if it is one."""
    try:
        with Image.open(io.BytesIO(data), formats=(FORMATS[extension],)) as image:
            if image.size == (size, size):
                image.load()
    except Exception as error:
        return f"cannot be decoded ({error})"
    if image.size == (size, size) and image.mode == "RGB":
        return ""
    return f"is {image.width} x {image.height} {image.mode} instead of {size} x {size} RGB"


def check_shard(folder: Path, decode: bool, number: int) -> list[str]:
    """All problems of one shard."""
    manifest, index = open_folder(folder)
    shard, path = manifest.shards[number], folder / manifest.shards[number].name
    ranges = None if index is None else index[manifest.first[number] : manifest.first[number + 1]]
    problems = [*check_file(path, shard), *check_sidecar(path.with_suffix(".json"), shard, ranges)]
    if ranges is not None and path.is_file():
        problem = index_file.byte_range_problem(manifest.shards[number : number + 1], ranges)
        problems += [f"{path}: {problem}"] if problem else check_samples(manifest, decode, shard, ranges)
    advance()
    return problems


def check_file(path: Path, shard: Shard | IndexFile) -> Iterator[str]:
    """Whether a shard, or the index, exists with the right bytes."""
    if not path.is_file():
        yield f"{path}: missing"
    elif (size := path.stat().st_size) != shard.bytes:
        yield f"{path}: {size} bytes instead of {shard.bytes}"
    elif files.sha256(path) != shard.sha256:
        yield f"{path}: altered (sha256 differs)"


def check_sidecar(path: Path, shard: Shard, ranges: np.ndarray | None) -> Iterator[str]:
    """Problems of a shard's sidecar."""
    expected: dict[str, Any] = {key: getattr(shard, key) for key in ("samples", "bytes", "sha256")}
    if ranges is not None:
        expected |= {"offsets": ranges["offset"].tolist(), "sizes": ranges["size"].tolist()}
    try:
        record: dict[str, Any] = json.loads(files.read_bytes(path))
        wrong = [key for key, value in expected.items() if record[key] != value]
        if wrong or len(record["sources"]) != shard.samples:
            yield f"{path}: differs from the manifest in {', '.join(wrong) or 'its number of sources'}"
    except FileNotFoundError:
        yield f"{path}: missing"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{path}: damaged ({error})"
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror or error})"


def check_folder(manifest: Manifest) -> Iterator[str]:
    """Problems of the folder: its index, and files that do not belong there."""
    known = {shard.name for shard in manifest.shards} | {MANIFEST, BUILD_SPEC, HOLDOUT}
    if manifest.index is not None:
        known.add(manifest.index.name)
        yield from check_file(manifest.folder / manifest.index.name, manifest.index)
    if manifest.rejected:
        known.add(REJECTED)
        if not (manifest.folder / REJECTED).is_file():
            yield f"{manifest.folder / REJECTED}: missing"
    for path in sorted(manifest.folder.iterdir()):
        if path.name not in known and not _is_sidecar(path, known):
            yield f"{path}: does not belong here"


def _is_sidecar(path: Path, known: set[str]) -> bool:
    """Whether a file is the sidecar of a shard, or of a range without a single readable image."""
    if path.suffix != ".json" or not path.stem.isdigit():
        return False
    try:
        return path.stem + ".tar" in known or json.loads(files.read_bytes(path))["samples"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folders(out: Path) -> list[Path]:
    """OUT, and the folder of its held-out set if there is one."""
    return [out, out / HOLDOUT] if (out / HOLDOUT).is_dir() else [out]


def convert(folder: Path) -> bool:
    """Moves the byte ranges from a manifest of version 1 into an index; False if it is of another version.

    Raises UserError without a manifest.
    """
    manifest = manifest_file.load(folder)
    if manifest.index is not None or manifest.ranges is None:
        return False
    index = index_file.write_index(folder, [manifest.ranges])
    dataclasses.replace(manifest, index=index, ranges=None).save(folder)
    return True


def verify(out: Path, decode: bool, workers: int) -> tuple[list[Manifest], list[str]]:
    """Checks OUT and OUT/holdout; returns their manifests and all problems. Raises UserError without a manifest."""
    open_folder.cache_clear()
    manifests = [open_folder(folder)[0] for folder in folders(out)]
    problems: list[str] = []
    total = sum(len(manifest.shards) for manifest in manifests)
    with (
        Pool(max(1, min(workers, total))) as pool,
        progress_bar(total, 0, "shards", " shards") as bar,
    ):
        for manifest in manifests:
            lists = pool.run(partial(check_shard, manifest.folder, decode), range(len(manifest.shards)), bar)
            problems += [*check_folder(manifest), *itertools.chain.from_iterable(lists)]
    return manifests, problems
