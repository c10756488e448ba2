"""`build.json`: what a folder of shards is built from; its lock keeps a second build out."""

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
from ggcn.shards.splits import BuildSpec, Split

BUILD_SPEC = "build.json"


def differences(old: BuildSpec, new: BuildSpec) -> str:
    """The differences between two specs as text, by the options of the command; empty if there are none."""
    keys = [key for key in new if old.get(key) != new[key] and key not in ("source", "images")]
    changes = [
        f"--{key.replace('_', '-')} {_display(old.get(key))} (now {_display(new[key])})" for key in keys
    ]
    if old.get("source") != new["source"]:
        changes.append(f"another list of images ({old.get('images')} images, now {new['images']})")
    return ", ".join(changes)


def _display(value: Any) -> str:
    return "default" if value is None else str(value)


def prepare_folder(split: Split) -> None:
    """Makes the split's folder and its build.json.

    Raises UserError when it holds other files, or shards of other options or of another source.
    """
    path = split.folder / BUILD_SPEC
    split.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(not name.startswith(".tmp-") for name in os.listdir(split.folder)):
            raise UserError(f"{split.folder} is not empty and has no build.json; give another OUT")
        files.write_json(path, {"version": VERSION, **split.build_spec})
    if other := differences(_read_build_spec(path), split.build_spec):
        raise UserError(
            f"{split.folder} was built with {other}; give another OUT, or delete it to build it again"
        )


def _read_build_spec(path: Path) -> BuildSpec:
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
def build_lock(out: Path) -> Iterator[None]:
    """Locks OUT for this process and its workers. Raises UserError when another build is running there."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.exclusive_lock(out / BUILD_SPEC, with_children=True))
        except locks.LockTaken:
            raise UserError(f"another make_shards is running in {out}; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            # a read-only folder needs no lock: nothing can be built there, only found to be complete
        yield
