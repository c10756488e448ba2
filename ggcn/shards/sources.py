"""Sources of images: a folder, an archive, a table, a database, a list of URLs, or photographs inside packages.

A source is a sorted list of names and a way to read one of them. The same files as a folder, as a zip and
as a tar are the same source, whichever system packed them: same names, same bytes.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from typing import Any

from ggcn.errors import TransientError, UserError
from ggcn.shards import annotations, containers, declared_splits
from ggcn.shards.entry import Entry
from ggcn.shards.names import ENDINGS, is_image
from ggcn.shards.zip_source import zip_name

UNREADABLE = "unreadable: "
GONE = "gone: "
"""in place of a hash: reading failed in a way that another attempt does not change"""


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


def find(location: str, zip_encoding: str = "cp437", column: str = "", split: str = "") -> Source:
    """Lists the images of a location; `zip_encoding`: see `zip_name`.

    `column`: of a table, the one with the images; empty: found by its name or type. `split`: takes the images of that
    split alone, where the source declares splits. Raises UserError when there is no such location, when it has no
    images, or when a package to read it is absent; OSError when a folder cannot be read.
    """
    entries, listed = containers.list_source(location, zip_encoding, column)
    images = [entry for entry in entries if entry.kind not in containers.FILES or is_image(entry.name)]
    if not images:
        endings = " ".join(ENDINGS)
        raise UserError(
            f"no images in {location} ({len(entries)} other files); their names must end in {endings}"
        )
    images = annotations.apply_lists(annotations.attach_side_files(entries, images), listed)
    taken = declared_splits.select(location, images, split)
    used = sum(len(image.side_files) for image in images)
    return Source(location, taken, max(0, len(entries) - len(images) - used))


def read(location: str, entry: Entry) -> bytes:
    """The bytes of one image file. Raises OSError, ValueError or what a format's library raises when it is damaged."""
    return containers.read(location, entry)


def annotation(location: str, entry: Entry) -> dict[str, Any]:
    """What the source says about an image: labels, captions and the like, as JSON keeps them; often nothing."""
    return annotations.plain(containers.annotate(location, entry))


def content_hash(location: str, entry: Entry) -> str:
    """The hexadecimal SHA-256 of an image file's bytes and annotation, or the text of `unreadable`."""
    try:
        return digest(read(location, entry), annotation(location, entry))
    except MemoryError:
        raise
    except Exception as error:
        return unreadable(error)


def digest(data: bytes, annotation: dict[str, Any]) -> str:
    """The hexadecimal SHA-256 of bytes, followed by an annotation as JSON unless it is empty."""
    text = json.dumps(annotation, sort_keys=True) if annotation else ""
    return hashlib.sha256(data + text.encode()).hexdigest()


def unreadable(error: Exception) -> str:
    """The text in place of a file's SHA-256 when reading it failed."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    is_gone = isinstance(error, UserError) and not isinstance(error, TransientError)
    return (GONE if is_gone else UNREADABLE) + why


def is_unreadable(content_hash: str) -> bool:
    """Whether a content hash is instead the text of `unreadable`."""
    return content_hash.startswith(UNREADABLE)


def has_old_names(location: str) -> bool:
    """Whether a location is a zip whose images have names in an undeclared encoding."""
    if location.startswith("demo:") or not zipfile.is_zipfile(location):
        return False
    return any(
        is_image(member.filename) and zip_name(member, "latin-1") != zip_name(member, "cp437")
        for member in zipfile.ZipFile(location).infolist()
    )
