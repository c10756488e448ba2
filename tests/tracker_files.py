"""Reads what trackers wrote."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
"""bytes of a block of the log format, LevelDB's, that W&B writes"""
FULL, LAST = 1, 4
"""types of a piece that ends a record"""


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics in a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        items = record.history.item
        if items:
            names = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append(names)
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a log: after a header of 7 bytes, pieces of checksum (4), length (2), type (1) and content."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too short for another piece
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield record
            record = b""
