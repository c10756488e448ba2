"""Prints what a checkpoint holds, and whether it is valid:

    python tools/inspect_checkpoint.py runs/faces64                              # all of a run, newest first
    python tools/inspect_checkpoint.py runs/faces64/checkpoints/step_00001000    # one

Verifies size and sha256 of every file. Exit code 1 when a checkpoint is damaged.
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path

import torch

from ggcn import files
from ggcn.engine.portable import STATE
from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.run import checkpoint


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=user_path, help="a run directory, or one checkpoint's folder")
    folders = find(parser.parse_args().path)
    valid = [inspect(folder) for folder in folders]
    return 0 if all(valid) else 1


def find(path: Path) -> list[Path]:
    """The checkpoints at `path`, newest first, then those that a roll-back discarded; raises
    UserError when there is none."""
    path = path if path.name else path.resolve()  # "."
    names = (checkpoint.PREFIX, f"left-{checkpoint.PREFIX}")
    if path.is_dir() and (path.name.startswith(names) or (path / "meta.json").exists()):
        return [path]
    root = path if path.name == "checkpoints" else path / "checkpoints"
    folders = [root / checkpoint.name(step) for step in checkpoint.steps(root)]
    folders += sorted(root.glob(f"left-{checkpoint.PREFIX}*"), reverse=True)
    if not folders:
        raise UserError(f"{path} is neither a checkpoint nor a run that has one")
    return folders


def inspect(folder: Path) -> bool:
    """Prints one checkpoint; returns whether it is valid."""
    fault = checkpoint.faults(folder)
    _print(f"{folder}{_marks(folder)}: {'valid' if fault is None else f'DAMAGED ({fault})'}")
    try:
        meta = checkpoint.meta(folder)
        for key, value in meta.items():
            if key != "files":
                _print(f"  {key:10} {value if isinstance(value, str) else json.dumps(value)}")
        for name, entry in meta.get("files", {}).items():
            content = _content(folder / name) if checkpoint.inside(name) else ", outside"
            _print(f"  {entry['bytes']:>14,} bytes  {entry['sha256'][:12]}  {name}{content}")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # damaged files raise all kinds of errors
        return False
    return fault is None


def _print(line: str) -> None:
    """Prints a line; the content of a foreign checkpoint must not control the terminal."""
    print("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line))


def _marks(folder: Path) -> str:
    """Whether it is the newest or the best of its run."""
    newest, best = "", None
    with suppress(OSError):
        newest = files.read_text(folder.parent / "latest").strip()
    with suppress(OSError):
        best = checkpoint.best(folder.parent)
    marks = ["latest"] if newest == folder.name else []
    if best and best["checkpoint"] == folder.name:
        by = checkpoint.best_by(best)
        marks.append(f"best, {by} {best[by]:g}")
    return f" ({'; '.join(marks)})" if marks else ""


def _content(path: Path) -> str:
    """The number of parameters and updates in an engine's state."""
    if path.name != STATE:
        return ""
    try:
        with files.open_regular(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        count = sum(parts["weight"].numel() for parts in state["parameters"].values())
    except Exception:  # damaged files raise all kinds of errors
        return ", unreadable"
    return f", {count:,} parameters after {state['updates']:,} updates"
