"""The interface of a tracker, and what it is told of a run."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ggcn import files
from ggcn.json_lines import parse
from ggcn.redact import redact, shard_folder

FOLDER = "trackers"
"""folder of a run directory with the run's key and how far each tracker has come"""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run."""

    name: str
    folder: str
    """the run directory"""
    key: str
    """twelve hexadecimal digits that stay the same over all restarts: what a tracker finds its own run by"""
    project: str
    """log.project; empty: the tracker's own default"""
    config: dict[str, Any]
    """{dotted key: value}, without credentials"""


class Tracker(Protocol):
    """Records one run. Its methods may be slow and may raise, which costs that record and nothing else.

    A class of this kind serves as log.trackers=[my_module:MyTracker]; it is created without arguments.
    """

    def start(self, run: TrackedRun) -> None:
        """Opens the tracker's own run, or continues the one that an earlier start opened for `run.key`."""
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Records metrics after `step` completed steps. Steps grow, but after a roll-back of the run."""
        ...

    def image(self, step: int, name: str, path: Path) -> None:
        """Records the PNG at `path`, which may be removed later."""
        ...

    def finish(self, outcome: str) -> None:
        """Ends the recording: `outcome` is "finished", "stopped" (to be continued by a later start) or "failed"."""
        ...


def run_key(folder: Path) -> str:
    """The key of the run in `folder`, which the first call creates. Raises OSError where it cannot be written."""
    path = folder / FOLDER / "run.json"
    known = parse(files.read_bytes(path)) if path.exists() else None
    if known and isinstance(known.get("key"), str):
        return known["key"]
    path.parent.mkdir(parents=True, exist_ok=True)
    key = uuid.uuid4().hex[:12]
    files.write_json(path, {"key": key})
    return key


def public(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config as it may leave this machine: without credentials, and with values that JSON has."""
    return {name: _public(value) for name, value in flat.items()}


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {shard_folder(str(key)): _public(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_public(entry) for entry in value]
    if isinstance(value, str):
        return shard_folder(value) if value.startswith("pipe:") else redact(value)
    return value if isinstance(value, bool | int | float | None) else str(value)
