"""Finds run directories by paths, names, or the folders that contain them."""

import os
from collections.abc import Sequence
from pathlib import Path

from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.run.directory import RunDir


def find(args: Sequence[str]) -> list[RunDir]:
    """The runs that the arguments name: paths, names in runs/, folders of runs, or run=NAME and paths.runs=FOLDER;
    all runs in runs/ without arguments.

    Raises UserError when there are none.
    """
    overrides = dict(arg.split("=", 1) for arg in args if _is_override(arg))
    base = user_path(overrides.get("paths.runs", "runs"))
    names = [*(arg for arg in args if not _is_override(arg)), *filter(None, [overrides.get("run")])]
    paths = [path if (path := user_path(name)).exists() else base / name for name in names] or [base]
    runs = [RunDir(result.resolve()) for path in paths for result in _runs_in(path)]
    if not runs:
        raise UserError(f"no run in {', '.join(map(str, paths))}; name a run directory, such as runs/NAME")
    return runs


def _is_override(arg: str) -> bool:
    return "=" in arg and not user_path(arg).exists()


def _runs_in(folder: Path) -> list[Path]:
    """The run directories at `folder`, in it or one folder below; folders that cannot be read contain none."""
    if _is_run(folder):
        return [folder]
    children = [path for path in _folders(folder) if not path.name.startswith(".")]
    grandchildren = [path for child in children if not _is_run(child) for path in _folders(child)]
    return sorted(path for path in [*children, *grandchildren] if _is_run(path))


def _is_run(path: Path) -> bool:
    return os.path.lexists(path / "config.yaml")


def _folders(path: Path) -> list[Path]:
    try:
        return [child for child in path.iterdir() if child.is_dir()]
    except OSError:
        return []
