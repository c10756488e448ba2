"""`build.json`: what a folder of shards is being built from, and by which process."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ggcn import files, locks
from ggcn.errors import UserError
from ggcn.shards.shard_spec import VERSION
from ggcn.shards.split import Part

CLAIM = "build.json"


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two claims, in words; empty if nothing does."""
    keys = [key for key in new if old.get(key) != new[key] and key not in ("source", "images")]
    words = [f"--{key.replace('_', '-')} {_word(old.get(key))} (now {_word(new[key])})" for key in keys]
    if old.get("source") != new["source"]:
        words.append(f"another list of images ({old.get('images')} images, now {new['images']})")
    return ", ".join(words)


def _word(value: Any) -> str:
    return "default" if value is None else str(value)


def claim(part: Part) -> None:
    """Makes the folder this build's, and clears what a killed build left half written.

    Raises UserError when it holds something else, or shards of other options or of another source.
    """
    path = part.folder / CLAIM
    part.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(not name.startswith(".tmp-") for name in os.listdir(part.folder)):
            raise UserError(f"{part.folder} is not empty and holds no shards of ours; give another OUT")
        files.write_json(path, {"version": VERSION, **part.claim})
    if other := differences(_read_claim(path), part.claim):
        raise UserError(f"{part.folder} was built with {other}; give another OUT, or delete it to build anew")


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(files.read_bytes(path))
        version = value.pop("version")
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged; delete {path.parent} to build it again") from None
    if version != VERSION:
        raise UserError(
            f"{path.parent} is of another version of make_shards, which made other pixels (this one converts "
            f"colours to sRGB); give another OUT, or delete it to build it again"
        )
    return value


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds OUT for this process and its workers. Raises UserError when another build is at work there."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.exclusive_lock(out / CLAIM, with_children=True))
        except locks.Taken:
            raise UserError(f"another make_shards is at work in {out}; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise  # else nobody can build there: at most find that everything is there
        yield
