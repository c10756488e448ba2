"""Checkpoints, which are complete and undamaged (valid) or do not count.

checkpoints/.tmp-step_N/ -> rename -> checkpoints/step_N/
    energy/, upsampler/    state.pt each: weights and Adam's moments by name, the same for every engine
    lanes/                 replay buffer, a file per lane
    ema.pt                 averaged weights: all that a sampler needs
    meta.json              step, world size, engine, hash of the data, size and sha256 of every file
    COMPLETE               sha256 of meta.json, written last
checkpoints/latest         name of the newest, replaced atomically
checkpoints/best           name of the best checkpoint by checkpoint.best_by, and its value; it is never pruned
checkpoints/left-step_N/   the best one, or one of checkpoint.keep_every, from after the step that a rollback went to
checkpoints/copied         names of the copies that were made at checkpoint.copy_to

Nothing in a checkpoint needs unpickling: every file opens with weights_only.
"""

import json
import logging
import os
import shutil
from math import isnan
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "step_"
BEST_BY = {"fid": -1, "r2_heldout": 1}
"""values of checkpoint.best_by: 1 where higher is better, -1 where lower is"""


def name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


def faults(folder: Path, deep: bool = True) -> str | None:
    """Why a checkpoint is not valid, or None if it is.

    Every file must be there with the right size, and if `deep` with the right sha256.
    """
    complete, description = folder / "COMPLETE", folder / "meta.json"
    if not complete.is_file():
        return "COMPLETE is missing"
    try:
        if not description.is_file() or files.sha256(description) != files.read_text(complete).strip():
            return "meta.json was altered"
        for path, entry in meta(folder)["files"].items():
            if not inside(path):
                return "meta.json names a file outside"
            file = folder / path
            if not file.is_file():
                return f"{path} is missing"
            if file.stat().st_size != entry["bytes"] or (deep and files.sha256(file) != entry["sha256"]):
                return f"{path} was altered"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "meta.json describes no files"
    return None


def inside(path: str) -> bool:
    """Whether a path in meta.json leads to a file in the checkpoint's own folder."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def meta(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint: the content of its meta.json."""
    return json.loads(files.read_bytes(folder / "meta.json"))


def healthy(folder: Path) -> bool:
    """Whether a checkpoint is complete and the guard found nothing suspect when it was saved."""
    return faults(folder, deep=False) is None and meta(folder).get("health") != "suspect"


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first, valid or not."""
    suffixes = (path.name.removeprefix(PREFIX) for path in root.glob(f"{PREFIX}*"))
    folders = {int(suffix): f"{PREFIX}{suffix}" for suffix in suffixes if suffix.isdecimal()}
    return sorted((step for step, folder in folders.items() if folder == name(step)), reverse=True)


def newest_valid(root: Path, deep: bool = True) -> Path | None:
    """The newest valid checkpoint, with a warning for each damaged one passed over; None if there are none at all.

    Raises UserError when there are checkpoints and all of them are damaged.
    """
    damaged = []
    for step in steps(root):
        folder = root / name(step)
        fault = faults(folder, deep)
        if fault is None:
            return folder
        if not folder.exists():  # the run continues and has pruned it, so there are newer ones
            return newest_valid(root, deep)
        damaged.append(f"{folder.name}: {fault}")
        log.warning("checkpoint %s is damaged (%s); trying the one before", folder, fault)
    if damaged:
        raise UserError(
            f"no checkpoint in {root} is valid ({'; '.join(damaged)}); restore one, or remove the folder to start again"
        )
    return None


def at_step(root: Path, step: int) -> Path:
    """The checkpoint of one step; raises UserError when it is missing or not valid."""
    folder = root / name(step)
    fault = faults(folder) if folder.is_dir() else "there is none"
    if fault is not None:
        existing = ", ".join(map(str, steps(root))) or "none"
        raise UserError(f"no valid checkpoint of step {step} in {root} ({fault}); existing steps: {existing}")
    return folder


def best(root: Path) -> dict[str, Any] | None:
    """{"checkpoint": folder name, "fid" or "r2_heldout": number, "measured": how} of the best checkpoint so far; None
    where there is none, or where the file is damaged."""
    try:
        entry = json.loads(files.read_bytes(root / "best"))
        value = float(entry[best_by(entry)] + 0)
        is_local = Path(entry["checkpoint"]).name == entry["checkpoint"]
        return entry if is_local and (root / entry["checkpoint"]).is_dir() and value == value else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        log.warning("%s cannot be read; the best checkpoint is not known any more", root / "best")
        return None


def best_by(entry: dict[str, Any]) -> str:
    """Which number an entry of `best` holds."""
    return next((by for by in BEST_BY if by in entry), "fid")


def record_best(root: Path, step: int, value: float, measured: str = "", by: str = "fid") -> bool:
    """Records the checkpoint of `step` as the best if its value of `by` is better than the best so far; returns whether
    it is. `measured`: how; what was measured in another way does not compare, and is replaced. One process calls it."""
    former = best(root) or {}
    comparable = by in former and former.get("measured", "") == measured
    if isnan(value) or (comparable and BEST_BY[by] * value <= BEST_BY[by] * former[by]):
        return False
    details = {"measured": measured} if measured else {}
    files.write_json(root / "best", {"checkpoint": name(step), by: value, **details})
    return True


def discard(folder: Path) -> None:
    """Removes a checkpoint; its name never holds a part of it."""
    gone = folder.with_name(f".tmp-gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def archive(folder: Path) -> None:
    """Renames a checkpoint to left-NAME, from which no run resumes. `best` follows it."""
    root, target = folder.parent, folder.with_name(f"left-{folder.name}")
    entry = best(root)
    if entry and entry["checkpoint"] == target.name:  # an earlier attempt's of the same step, and better
        discard(folder)
        return
    shutil.rmtree(target, ignore_errors=True)
    os.rename(folder, target)
    if entry and entry["checkpoint"] == folder.name:
        files.write_json(root / "best", {**entry, "checkpoint": target.name})
