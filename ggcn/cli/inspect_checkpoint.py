"""Says what a checkpoint holds, and whether it is whole:

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
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("path", type=user_path, help="a run directory, or one checkpoint's folder")
    folders = found(words.parse_args().path)
    whole = [inspect(folder) for folder in folders]
    return 0 if all(whole) else 1


def found(path: Path) -> list[Path]:
    """The checkpoints that `path` stands for, newest first, then those that a roll-back went back beyond; raises
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
    """Prints one checkpoint; returns whether it is whole."""
    fault = checkpoint.faults(folder)
    _say(f"{folder}{_marks(folder)}: {'whole' if fault is None else f'DAMAGED ({fault})'}")
    try:
        facts = checkpoint.meta(folder)
        for key, value in facts.items():
            if key != "files":
                _say(f"  {key:10} {value if isinstance(value, str) else json.dumps(value)}")
        for name, entry in facts.get("files", {}).items():
            content = _content(folder / name) if checkpoint.inside(name) else ", outside"
            _say(f"  {entry['bytes']:>14,} bytes  {entry['sha256'][:12]}  {name}{content}")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # of a damaged file, anything
        return False
    return fault is None


def _say(line: str) -> None:
    """Prints a line; what a checkpoint of somebody else's holds must not steer the terminal."""
    print("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line))


def _marks(folder: Path) -> str:
    """Whether it is the newest or the best of its run."""
    newest, liked = "", None
    with suppress(OSError):
        newest = files.read_text(folder.parent / "latest").strip()
    with suppress(OSError):
        liked = checkpoint.best(folder.parent)
    marks = ["latest"] if newest == folder.name else []
    if liked and liked["checkpoint"] == folder.name:
        marks.append(f"best, FID {liked['fid']:g}")
    return f" ({'; '.join(marks)})" if marks else ""


def _content(path: Path) -> str:
    """What an engine's state amounts to."""
    if path.name != STATE:
        return ""
    try:
        with files.open_regular(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        count = sum(parts["weight"].numel() for parts in state["parameters"].values())
    except Exception:  # of a damaged file, anything
        return ", unreadable"
    return f", {count:,} parameters after {state['updates']:,} updates"
