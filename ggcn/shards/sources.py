"""Where images come from: a folder, a zip, a tar, or photographs inside registry packages.

A source is a sorted list of names and a way to read one of them. The same files as a folder, as a zip and
as a tar are the same source, on whatever system they were packed: same names, same bytes.
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
    entries = named(list_zip(place, zip_encoding) if where == "zip" else LISTERS[where](place))
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
        return read_zip_member(place, entry)
    if where == "tar":
        return read_tar_member(place, entry)
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


def _list_folder(place: str) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    list(_new_folders(place, ["."], seen))
    for root, folders, names in os.walk(place, followlinks=True, onerror=_raise):
        folders[:] = _new_folders(root, folders, seen)
        for name in names:
            path = os.path.join(root, name)
            size, stamp = size_and_stamp(path)
            inside = Path(path).relative_to(place).as_posix()
            yield Entry(inside, inside, size, stamp=stamp)


def has_old_names(place: str) -> bool:
    """Whether a place is a zip in which images have names of an encoding that it does not say."""
    if kind(place) != "zip":
        return False
    return any(
        is_image(member.filename) and zip_name(member, "latin-1") != zip_name(member, "cp437")
        for member in zipfile.ZipFile(place).infolist()
    )


LISTERS = {"demo": list_demo, "folder": _list_folder, "tar": list_tar}
