"""The files of a zip, with the names that other systems give them."""

import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp


class _Archive(zipfile.ZipFile):
    """A zip that forked processes inherit, its directory read once; each has a file position of its own."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location, self.process = location, os.getpid()

    def here(self) -> "_Archive":
        """The zip with a file that this process opened."""
        if self.process != os.getpid():
            self.fp, self.process = open(self.location, "rb"), os.getpid()  # noqa: SIM115
        return self


@functools.lru_cache(maxsize=64)
def _open(location: str, stamp: tuple[int, ...]) -> _Archive:
    return _Archive(location)


def _zip(location: str) -> zipfile.ZipFile:
    """The zip, opened; another one if its file was replaced."""
    status = os.stat(location)
    return _open(location, (status.st_ino, status.st_size, status.st_mtime_ns)).here()


def zip_name(member: zipfile.ZipInfo, encoding: str) -> str:
    """A member's name. Names without the mark of UTF-8 are often UTF-8 all the same, or have it in an extra field.

    Other names are in an undeclared old code page, and are decoded with `encoding`, or as cp437 where that fails.
    Raises UserError when there is no such encoding.
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


def _unicode_path(extra: bytes, raw: bytes) -> bytes:
    """The UTF-8 name of the extra field 0x7075; empty where there is none, or it belongs to another name."""
    while len(extra) >= 4:
        key, size = struct.unpack_from("<HH", extra)
        if key == 0x7075 and extra[5:9] == struct.pack("<I", zlib.crc32(raw)):
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return b""


def list_zip(location: str, encoding: str) -> Iterator[Entry]:
    _, stamp = size_and_stamp(location)
    try:
        members = _zip(location).infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(
            f"{location} is damaged ({error}); restore it, or unpack it and give the folder"
        ) from None
    for member in members:
        if not (member.is_dir() or member.filename.endswith("\\")):
            yield Entry(
                zip_name(member, encoding), member.filename, member.file_size, stamp=stamp, kind="zip"
            )


def read_zip_member(location: str, entry: Entry) -> bytes:
    archive = _zip(location)
    if archive.getinfo(entry.path).flag_bits & 1:
        raise ValueError("encrypted; unpack the zip and give the folder")
    return archive.read(entry.path)
