"""Sources of images: a folder, a zip, a tar, or photographs inside installed packages.

A source is a sorted list of names and a way to read one of them. The same files as a folder, as a zip and
as a tar are the same source, whichever system packed them: same names, same bytes.
"""

import functools
import hashlib
import json
import os
import posixpath
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ggcn import files
from ggcn.errors import UserError
from ggcn.shards.demo_source import demo_paths, list_demo
from ggcn.shards.entry import Entry, size_and_stamp
from ggcn.shards.tar_source import list_tar, read_tar_member
from ggcn.shards.zip_source import list_zip, read_zip_member, zip_name

ENDINGS = [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"]
ENDINGS += [".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"]
UNREADABLE = "unreadable: "


@dataclass(frozen=True)
class Source:
    """The image files of SOURCE, sorted by name."""

    location: str
    """SOURCE as the user gave it"""
    entries: list[Entry]
    skipped: int
    """number of files that are not images by their names"""

    def digest(self) -> str:
        """Identity of the list of names, independent of how they are stored."""
        return hashlib.sha256(json.dumps([entry.name for entry in self.entries]).encode()).hexdigest()


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and neither hidden nor macOS metadata."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(tuple(ENDINGS)) and not hidden


def normalize_path(path: str) -> str:
    """A stored path as every system would list it: forward slashes, no leading ./ or /, composed characters."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")).lstrip("/"))


def normalize_names(entries: Iterable[Entry]) -> list[Entry]:
    """The entries under normalize_path names, sorted by them.

    Of files stored under one path, as archives allow, the last counts. Paths that differ, but have the same
    normalize_path name, are all kept: the second and later ones under the names they are stored by.
    """
    stored = {entry.path: entry for entry in entries}
    normals = {path: normalize_path(entry.name) for path, entry in stored.items()}
    result: dict[str, Entry] = {}
    for path in sorted(stored, key=lambda path: (path != normals[path], path)):
        name = path if normals[path] in result else normals[path]
        result[name] = stored[path] if stored[path].name == name else replace(stored[path], name=name)
    return [result[name] for name in sorted(result)]


@functools.cache
def source_kind(location: str) -> str:
    """What a location is: demo, folder, zip or tar. Raises UserError if none of them."""
    if location.startswith("demo:"):
        return "demo"
    if not os.path.exists(location):
        raise UserError(
            f"there is no {location}; SOURCE is a folder, a zip, a tar, demo:faces or demo:scenes"
        )
    if os.path.isdir(location):
        return "folder"
    if other := files.type_of(os.stat(location).st_mode):
        raise UserError(f"{location} is {other}; SOURCE is a folder, or a zip or tar that is a regular file")
    if zipfile.is_zipfile(location):
        return "zip"
    if tarfile.is_tarfile(location):
        return "tar"
    raise UserError(f"{location} is neither a folder nor a complete zip or tar; give one of these as SOURCE")


def find(location: str, zip_encoding: str = "cp437") -> Source:
    """Lists the images of a location; `zip_encoding`: see `zip_name`.

    Raises UserError when there is no such location, when it has no images, or when a demo's package is absent;
    OSError when a folder cannot be read.
    """
    kind = source_kind(location)
    entries = normalize_names(list_zip(location, zip_encoding) if kind == "zip" else LISTERS[kind](location))
    images = [entry for entry in entries if is_image(entry.name)]
    if not images:
        endings = " ".join(ENDINGS)
        raise UserError(
            f"no images in {location} ({len(entries)} other files); their names must end in {endings}"
        )
    return Source(location, images, len(entries) - len(images))


def read(location: str, entry: Entry) -> bytes:
    """The bytes of one image file. Raises OSError, ValueError or what zipfile raises when it is damaged."""
    kind = source_kind(location)
    if kind == "zip":
        return read_zip_member(location, entry)
    if kind == "tar":
        return read_tar_member(location, entry)
    return files.read_bytes(
        demo_paths(location)[entry.path] if kind == "demo" else Path(location, entry.path)
    )


def content_hash(location: str, entry: Entry) -> str:
    """The hexadecimal SHA-256 of an image file's bytes, or the text of `unreadable`."""
    try:
        return digest(read(location, entry))
    except MemoryError:
        raise
    except Exception as error:
        return unreadable(error)


def digest(data: bytes) -> str:
    """The hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def unreadable(error: Exception) -> str:
    """The text in place of a file's SHA-256 when reading it failed."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UNREADABLE + why


def is_unreadable(content_hash: str) -> bool:
    """Whether a content hash is instead the text of `unreadable`."""
    return content_hash.startswith(UNREADABLE)


def _raise(error: OSError) -> None:
    raise error


def _unseen_folders(root: str, names: Iterable[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    for name in sorted(names):
        status = os.stat(os.path.join(root, name))
        if (status.st_dev, status.st_ino) not in seen:  # symbolic links can form a cycle
            seen.add((status.st_dev, status.st_ino))
            yield name


def _list_folder(location: str) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    list(_unseen_folders(location, ["."], seen))
    for root, folders, names in os.walk(location, followlinks=True, onerror=_raise):
        folders[:] = _unseen_folders(root, folders, seen)
        for name in names:
            path = os.path.join(root, name)
            size, stamp = size_and_stamp(path)
            inside = Path(path).relative_to(location).as_posix()
            yield Entry(inside, inside, size, stamp=stamp)


def has_old_names(location: str) -> bool:
    """Whether a location is a zip whose images have names in an undeclared encoding."""
    if source_kind(location) != "zip":
        return False
    return any(
        is_image(member.filename) and zip_name(member, "latin-1") != zip_name(member, "cp437")
        for member in zipfile.ZipFile(location).infolist()
    )


LISTERS = {"demo": list_demo, "folder": _list_folder, "tar": list_tar}
