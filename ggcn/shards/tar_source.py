"""The files of a tar, links and sparse files included."""

import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp


def list_tar(location: str) -> Iterator[Entry]:
    _, stamp = size_and_stamp(location)
    try:
        with tarfile.open(location, "r:") as tar:
            members = {posixpath.normpath(member.name): member for member in tar if not member.isdir()}
    except tarfile.ReadError as error:
        raise UserError(
            f"{location} is compressed or damaged ({error}); unpack it and give the folder"
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
            "tar",
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


def read_tar_member(location: str, entry: Entry) -> bytes:
    if entry.offset < 0:
        raise ValueError("a link inside the tar to what is not in it, or no file")
    with open(location, "rb") as file:
        file.seek(entry.offset)
        if not entry.pieces:
            return file.read(entry.bytes)
        data = bytearray(entry.bytes)
        for start, length in entry.pieces:
            data[start : start + length] = file.read(length)
        return bytes(data)
