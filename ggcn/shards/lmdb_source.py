"""The images of an LMDB database, one encoded image per key, as LSUN ships them."""

import functools
import os
from collections.abc import Iterator
from typing import Any

from ggcn.errors import UserError
from ggcn.shards.entry import Entry, size_and_stamp

DATA, LOCK = "data.mdb", "lock.mdb"
INSTALL = "needs lmdb; run `pip install 'ggcn[lmdb]'` (in a checkout `pip install -e '.[lmdb]'`)"


def is_lmdb(path: str) -> bool:
    """Whether a path is a database: a folder with data.mdb, or a file named so."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, DATA))
    return path.endswith((".mdb", ".lmdb")) and os.path.basename(path) != LOCK and os.path.isfile(path)


def list_lmdb(path: str) -> Iterator[Entry]:
    """One entry for each key, in their order. Raises UserError for a truncated database, or without the package."""
    file = os.path.join(path, DATA) if os.path.isdir(path) else path
    size, stamp = size_and_stamp(file)
    environment = open_lmdb(path, os.getpid())
    pages = environment.info()["last_pgno"] + 1
    if pages * environment.stat()["psize"] > size:  # the library would read beyond the file, and be killed
        raise UserError(f"{path} is truncated ({size} bytes, {pages} pages); restore it")
    try:
        with environment.begin(buffers=True) as reading:
            for key, value in reading.cursor():
                yield Entry(_name(bytes(key)), bytes(key).hex(), len(value), stamp=stamp, kind="lmdb")
    except _error_type() as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from None


def read_lmdb(path: str, entry: Entry) -> bytes:
    """The value of an entry's key. Raises KeyError when it is gone, and what lmdb raises."""
    with open_lmdb(path, os.getpid()).begin() as reading:
        value = reading.get(bytes.fromhex(entry.path))
    if value is None:
        raise KeyError(entry.name)
    return value


@functools.lru_cache(maxsize=64)
def open_lmdb(path: str, process: int) -> Any:
    """The database opened in this process, read-only and without its lock file, which a shared disk may not allow."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path} {INSTALL}") from None
    try:
        return lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(f"{path} is damaged or no LMDB database ({error}); restore it") from None


os.register_at_fork(before=open_lmdb.cache_clear)  # lmdb opens no database that a parent process has open


def _error_type() -> type[Exception]:
    import lmdb

    return lmdb.Error


def _name(key: bytes) -> str:
    """A key as text if it is printable, or else its hexadecimal digits."""
    text = key.decode(errors="replace")
    return text if text.isprintable() and "\ufffd" not in text and text else f"0x{key.hex()}"
