"""Which files of a source hold images, and how each kind is listed and read."""

import contextlib
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from ggcn import files
from ggcn.errors import UserError
from ggcn.shards import cifar_source, folder_source, lmdb_source, table_source, url_source
from ggcn.shards.annotations import LISTS, parse_side_file
from ggcn.shards.demo_source import demo_paths, list_demo
from ggcn.shards.entry import Entry, SideFile, Stamp, size_and_stamp
from ggcn.shards.names import is_image, normalize_names, normalize_path
from ggcn.shards.tar_source import list_tar, read_tar_member
from ggcn.shards.zip_source import list_zip, read_zip_member

KINDS = (
    "a folder, a zip, a tar, Parquet, Arrow, LMDB, a CIFAR batch, a list of URLs, demo:faces or demo:scenes"
)
FILES = ("file", "demo", "zip", "tar")
"""kinds of which some entries may be other files than images"""
NEIGHBOURS = ("", "Anno", "Eval")
"""folders next to a source in which lists about its images are looked for, as CelebA is unpacked"""
MAX_LIST_BYTES = 1 << 30
List = tuple[str, Stamp, bytes]
"""a list about images: its base name, stamp and content"""


def source_kind(location: str) -> str:
    """What a location is: demo, folder, or the kind of its entries. Raises UserError if it is none of them."""
    if location.startswith("demo:"):
        return "demo"
    if not os.path.exists(location):
        raise UserError(f"there is no {location}; SOURCE is {KINDS}")
    if kind := container_kind(location):
        return kind
    if os.path.isdir(location):
        return "folder"
    if other := files.type_of(os.stat(location).st_mode):
        raise UserError(f"{location} is {other}; SOURCE is {KINDS}")
    raise UserError(f"{location} is neither a folder nor a complete zip or tar; SOURCE is {KINDS}")


def container_kind(path: str) -> str:
    """The kind of a file (or LMDB's folder) that holds images; empty if it is none, or cannot be opened."""
    try:
        if lmdb_source.is_lmdb(path):
            return "lmdb"
        if not os.path.isfile(path):
            return ""
        if path.endswith(table_source.ENDINGS):
            return "table"
        if cifar_source.is_cifar(path):
            return "cifar"
        if url_source.is_url_list(path):
            return "urls"
        return "zip" if zipfile.is_zipfile(path) else "tar" if tarfile.is_tarfile(path) else ""
    except OSError:
        return ""


def list_source(location: str, zip_encoding: str, column: str) -> tuple[list[Entry], list[List]]:
    """All files and images of a location, sorted by name, and the lists about them.

    A folder without a single image file has those of the archives and tables in it. Raises UserError and OSError.
    """
    kind = source_kind(location)
    if kind != "folder":
        entries = list_container(location, kind, zip_encoding, column)
    else:
        entries = normalize_names(folder_source.list_folder(location))
        if not any(is_image(entry.name) for entry in entries):
            entries = _expanded(location, entries, zip_encoding, column)
    return entries, [] if kind == "demo" else _lists(location, entries)


def list_container(path: str, kind: str, zip_encoding: str, column: str) -> list[Entry]:
    """The entries of one archive, table or the like, sorted by name. Raises UserError."""
    listers: dict[str, Callable[[str], Iterable[Entry]]] = {
        "demo": list_demo,
        "zip": partial(list_zip, encoding=zip_encoding),
        "tar": list_tar,
        "table": partial(table_source.list_table, column=column),
        "lmdb": lmdb_source.list_lmdb,
        "cifar": cifar_source.list_cifar,
        "urls": url_source.list_urls,
    }
    entries = listers[kind](path)
    if kind in FILES:
        return normalize_names(entries)
    unique = {entry.name: entry for entry in entries}
    return [unique[name] for name in sorted(unique)]


def _expanded(location: str, entries: list[Entry], zip_encoding: str, column: str) -> list[Entry]:
    """A folder's files, each archive or table among them replaced by its entries, named after it."""
    result = []
    for entry in entries:
        container = (
            posixpath.dirname(entry.path)
            if posixpath.basename(entry.path) == lmdb_source.DATA
            else entry.path
        )
        path = os.path.join(location, container)
        hidden = any(part.startswith(".") for part in entry.name.split("/"))
        kind = "" if hidden else container_kind(path)
        if not kind:
            result.append(entry)
            continue
        prefix = normalize_path(container)
        result += [
            replace(
                each,
                name=f"{prefix}/{each.name}",
                container=container,
                group=each.group and f"{prefix}:{each.group}",
            )
            for each in list_container(path, kind, zip_encoding, column)
        ]
    return sorted(result, key=lambda entry: entry.name)


def _lists(location: str, entries: list[Entry]) -> list[List]:
    """The lists about images among the entries, and next to the location."""
    result = [
        (posixpath.basename(entry.name), entry.stamp, read(location, entry))
        for entry in entries
        if posixpath.basename(entry.name) in LISTS and 0 <= entry.bytes <= MAX_LIST_BYTES
    ]
    beside = os.path.dirname(os.path.abspath(location))
    names = [name for name in LISTS if name != "dataset.json"]  # that one lies inside
    for path in (os.path.join(beside, folder, name) for folder in NEIGHBOURS for name in names):
        size, stamp = size_and_stamp(path)
        if os.path.isfile(path) and size <= MAX_LIST_BYTES:
            result.append((os.path.basename(path), stamp, files.read_bytes(path)))
    return result


def read(location: str, entry: Entry) -> bytes:
    """The bytes of an entry. Raises OSError, ValueError or what a format's library raises."""
    return READERS[entry.kind](
        os.path.join(location, entry.container) if entry.container else location, entry
    )


def annotate(location: str, entry: Entry) -> dict[str, Any]:
    """What the source says about an image, with values of any type."""
    result = dict(entry.annotation or {})
    if entry.kind == "table":
        path = os.path.join(location, entry.container) if entry.container else location
        result |= table_source.annotate_table(path, entry)
    for side in entry.side_files:
        with contextlib.suppress(OSError, ValueError, KeyError):  # an image is worth more than its caption
            result[side.key] = parse_side_file(side.key, read(location, _as_entry(entry, side)))
    return result


def _as_entry(image: Entry, side: SideFile) -> Entry:
    return replace(image, path=side.path, offset=side.offset, bytes=side.bytes, pieces=())


def _read_demo(location: str, entry: Entry) -> bytes:
    return files.read_bytes(demo_paths(location)[entry.path])


READERS: dict[str, Callable[[str, Entry], bytes]] = {
    "file": folder_source.read_file,
    "demo": _read_demo,
    "zip": read_zip_member,
    "tar": read_tar_member,
    "table": table_source.read_table,
    "lmdb": lmdb_source.read_lmdb,
    "cifar": cifar_source.read_cifar,
    "urls": url_source.read_url,
}
