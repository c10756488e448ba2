"""Names of image files, the same on every system."""

import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from ggcn.shards.entry import Entry

ENDINGS = [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"]
ENDINGS += [".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"]


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
