"""Checks a folder of shards down to the bytes of every sample."""

import dataclasses
import functools
import io
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ggcn import files
from ggcn.data import index_file, manifest, manifest_file
from ggcn.data.decoding import FORMATS
from ggcn.data.manifest import IndexFile, Manifest, Shard
from ggcn.errors import UserError
from ggcn.shards import assembly, build_spec, split
from ggcn.shards.pool import Pool, progress_bar, tick

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\0\0\x80", b"\x28\xb5\x2f\xfd")
"""how gzip, bzip2, xz, lzma and zstd files begin, which webdataset would unpack"""


def read_tar(path: Path, extension: str, most: int) -> list[bytes]:
    """The images of a tar of at most `most` bytes, as webdataset finds them.

    Raises ValueError for a tar that would become larger in memory than on the disk, and whatever webdataset and
    tarfile do.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with files.open_regular(path) as stream:
        check_members(stream, most)
        stream.seek(0)
        members = tar_file_expander([{"url": str(path), "stream": stream}])
        return [sample.get(extension, b"") for sample in group_by_keys(members)]


def check_members(stream: BinaryIO, most: int) -> None:
    """Raises ValueError unless a tar is uncompressed and its members are whole files within its first `most` bytes;
    TarError for what is no tar."""
    if stream.read(8).startswith(COMPRESSED):
        raise ValueError("it is compressed")
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if member.issparse() or (member.isreg() and member.offset_data + member.size > most):
                raise ValueError(f"{member.name} is larger than its place in the shard")


@functools.lru_cache(maxsize=2)
def opened(folder: Path) -> tuple[Manifest, np.ndarray | None]:
    """A folder's manifest and index, once for each process; None for an index that is missing or too short.

    Raises UserError without a manifest.
    """
    found = manifest_file.load(folder)
    try:
        return found, index_file.open_index(found)
    except UserError:
        return found, None


def check_samples(found: Manifest, decode: bool, shard: Shard, places: np.ndarray) -> Iterator[str]:
    """Problems inside a shard that is there: its tar, its samples' places, and its images if `decode`."""
    path = found.folder / shard.name
    try:
        images = read_tar(path, found.extension, shard.bytes)
    except Exception as error:
        why = str(error.args[0] if error.args else error).split(" @ ")[0]
        yield f"{path}: webdataset cannot read it ({why})"
        return
    if len(images) != shard.samples:
        yield f"{path}: {len(images)} samples instead of {shard.samples}"
    for index, (image, data) in enumerate(zip(images, stored(path, places), strict=False)):
        if image != data:
            yield f"{path}: sample {index} is not where the index says"
        elif decode and (problem := undecodable(data, found.size, found.extension)):
            yield f"{path}: sample {index} {problem}"


def stored(path: Path, places: np.ndarray) -> Iterator[bytes]:
    """What lies at each sample's place."""
    with files.open_regular(path) as file:
        for offset, size in places.tolist():
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
    found, index = opened(folder)
    shard, path = found.shards[number], folder / found.shards[number].name
    places = None if index is None else index[found.first[number] : found.first[number + 1]]
    problems = [*check_file(path, shard), *check_sidecar(path.with_suffix(".json"), shard, places)]
    if places is not None and path.is_file():
        wrong = index_file.byte_range_problem(found.shards[number : number + 1], places)
        problems += [f"{path}: {wrong}"] if wrong else check_samples(found, decode, shard, places)
    tick()
    return problems


def check_file(path: Path, shard: Shard | IndexFile) -> Iterator[str]:
    """Whether a shard, or the index, is there with the right bytes."""
    if not path.is_file():
        yield f"{path}: missing"
    elif (size := path.stat().st_size) != shard.bytes:
        yield f"{path}: {size} bytes instead of {shard.bytes}"
    elif files.sha256(path) != shard.sha256:
        yield f"{path}: altered (sha256 differs)"


def check_sidecar(path: Path, shard: Shard, places: np.ndarray | None) -> Iterator[str]:
    """Problems of the file that says where a shard's samples came from."""
    wanted: dict[str, Any] = {key: getattr(shard, key) for key in ("samples", "bytes", "sha256")}
    if places is not None:
        wanted |= {"offsets": places["offset"].tolist(), "sizes": places["size"].tolist()}
    try:
        record: dict[str, Any] = json.loads(files.read_bytes(path))
        wrong = [key for key, value in wanted.items() if record[key] != value]
        if wrong or len(record["sources"]) != shard.samples:
            yield f"{path}: differs from the manifest in {', '.join(wrong) or 'its number of sources'}"
    except FileNotFoundError:
        yield f"{path}: missing"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{path}: damaged ({error})"
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror or error})"


def check_folder(found: Manifest) -> Iterator[str]:
    """Problems of the folder as a whole: its index, and files that do not belong there."""
    known = {shard.name for shard in found.shards} | {manifest.NAME, build_spec.CLAIM, split.HOLDOUT}
    if found.index is not None:
        known.add(found.index.name)
        yield from check_file(found.folder / found.index.name, found.index)
    if found.rejected:
        known.add(assembly.REJECTED)
        if not (found.folder / assembly.REJECTED).is_file():
            yield f"{found.folder / assembly.REJECTED}: missing"
    for path in sorted(found.folder.iterdir()):
        if path.name not in known and not _belongs(path, known):
            yield f"{path}: does not belong here"


def _belongs(path: Path, known: set[str]) -> bool:
    """Sidecars do: of a shard, or of a slice without a single readable image."""
    if path.suffix != ".json" or not path.stem.isdigit():
        return False
    try:
        return path.stem + ".tar" in known or json.loads(files.read_bytes(path))["samples"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folders(out: Path) -> list[Path]:
    """OUT, and the folder of its held-out set where there is one."""
    return [out, out / split.HOLDOUT] if (out / split.HOLDOUT).is_dir() else [out]


def convert(folder: Path) -> bool:
    """Moves the places of all samples out of a manifest of version 1 into an index; False if it is none.

    Raises UserError without a manifest.
    """
    found = manifest_file.load(folder)
    if found.index is not None or found.ranges is None:
        return False
    index = index_file.write_index(folder, [found.ranges])
    dataclasses.replace(found, index=index, ranges=None).save(folder)
    return True


def verify(out: Path, decode: bool, workers: int) -> tuple[list[Manifest], list[str]]:
    """Checks OUT and OUT/holdout -> their manifests, all problems. Raises UserError without a manifest."""
    opened.cache_clear()
    all_found = [opened(folder)[0] for folder in folders(out)]
    problems: list[str] = []
    total = sum(len(found.shards) for found in all_found)
    with (
        Pool(max(1, min(workers, total))) as pool,
        progress_bar(total, 0, "shards", " shards") as bar,
    ):
        for found in all_found:
            lists = pool.run(partial(check_shard, found.folder, decode), range(len(found.shards)), bar)
            problems += [*check_folder(found), *(problem for some in lists for problem in some)]
    return all_found, problems
