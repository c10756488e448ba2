"""Images at URLs that a file lists: on web servers, or in object stores through fsspec."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from ggcn import files
from ggcn.data import remote
from ggcn.data.retries import with_retries
from ggcn.errors import UserError
from ggcn.redact import redact
from ggcn.shards.entry import Entry

ENDINGS = (".txt", ".lst", ".csv", ".tsv", ".jsonl", ".ndjson")
COLUMNS = ("url", "image_url", "image", "uri", "src")
"""names of the column with the URL, in capitals or not"""
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://[^\s]+", re.IGNORECASE)
LOCAL = ("file", "local", "reference", "dir")
"""schemes of fsspec that read this machine's files, or what a file says: never for URLs that others may have listed"""
MAX_IMAGE_BYTES = 256 << 20
RETRIES, BACKOFF_S = 3, 0.5


def is_url_list(path: str) -> bool:
    """Whether a text file lists URLs, by its ending and its first two lines."""
    if not path.endswith(ENDINGS):
        return False
    with files.open_regular(path) as file:
        return b"://" in file.readline(1 << 16) + file.readline(1 << 16)


def list_urls(path: str) -> Iterator[Entry]:
    """One entry for each URL, with the other columns of its line. Raises UserError without a column of URLs."""
    try:
        for url, annotation in _rows(path):
            name = _name(url)
            yield Entry(name, url, -1, kind="urls", annotation=annotation or None)
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} is no list of URLs ({error}); see docs/data.md") from None


def read_url(path: str, entry: Entry) -> bytes:
    """The bytes of an image. Raises UserError when it cannot be had, TransientError when it may be had later."""
    url = entry.path
    scheme = url.partition("://")[0].lower()
    if not REMOTE.fullmatch(url) or scheme in LOCAL or "::" in url:
        raise UserError("not a URL of a server or an object store")
    return with_retries(lambda: remote.read_whole(url, MAX_IMAGE_BYTES), url, RETRIES, BACKOFF_S)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.endswith((".jsonl", ".ndjson")):
            yield from _columns(path, (json.loads(line) for line in file if line.strip()))
        elif path.endswith((".csv", ".tsv")):
            yield from _columns(path, csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ","))
        else:
            yield from ((line.strip(), {}) for line in file if line.strip() and not line.startswith("#"))


def _columns(path: str, rows: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no object")
        names = [name for known in COLUMNS for name in row if isinstance(name, str) and name.lower() == known]
        if not names:
            raise UserError(
                f"row {number} of {path} has none of the columns {', '.join(COLUMNS)}; rename one"
            )
        if row[names[0]]:
            yield str(row[names[0]]).strip(), {key: row[key] for key in row if key and key != names[0]}


def _name(url: str) -> str:
    """A URL without its credentials; those that differ in them alone get different names."""
    shown = redact(url)
    return shown if shown == url else f"{shown}#{hashlib.sha256(url.encode()).hexdigest()[:12]}"
