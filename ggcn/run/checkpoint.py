"""Checkpoints that are whole or do not count.

checkpoints/.tmp-step_N/ -> rename -> checkpoints/step_N/
    energy/, upsampler/    state.pt each: weights and Adam's moments by name, the same for every engine
    lanes/                 persistent chains, a file per lane
    ema.pt                 averaged weights: all that a sampler needs
    meta.json              step, world size, engine, hash of the data, size and sha256 of every file
    COMPLETE               sha256 of meta.json, written last
checkpoints/latest         name of the newest, replaced atomically
checkpoints/best           name and score of the one that an evaluation liked best; it is never pruned
checkpoints/left-step_N/   a best one, or one of checkpoint.keep_every, that a roll-back went back beyond

Nothing in a checkpoint needs unpickling: every file opens with weights_only.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggcn import files, progress
from ggcn.config.schema import CheckpointConfig
from ggcn.distributed import process_group
from ggcn.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "step_"


def name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


def faults(folder: Path, deep: bool = True) -> str | None:
    """Why a checkpoint is not whole, or None if it is.

    Every file must be there and have the right size, and if `deep` the right sha256.
    """
    complete, described = folder / "COMPLETE", folder / "meta.json"
    if not complete.is_file():
        return "COMPLETE is missing"
    try:
        if not described.is_file() or files.sha256(described) != files.read_text(complete).strip():
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
    """Whether a file's name in meta.json leads to a place in the checkpoint's own folder."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return json.loads(files.read_bytes(folder / "meta.json"))


def healthy(folder: Path) -> bool:
    """Whether a checkpoint is complete and the guard had nothing against the run when it was saved."""
    return faults(folder, deep=False) is None and meta(folder).get("health") != "suspect"


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first, whole or not."""
    found = [path.name for path in root.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    numbers = {int(one.removeprefix(PREFIX)): one for one in found}
    return sorted((step for step, one in numbers.items() if one == name(step)), reverse=True)


def newest_valid(root: Path, deep: bool = True) -> Path | None:
    """The newest checkpoint that is whole, with a warning for each damaged one passed over; None if there is none.

    Raises UserError when there are checkpoints and not one is whole.
    """
    damaged = []
    for step in steps(root):
        folder = root / name(step)
        fault = faults(folder, deep)
        if fault is None:
            return folder
        if not folder.exists():  # the run goes on and has pruned it, so there are newer ones
            return newest_valid(root, deep)
        damaged.append(f"{folder.name}: {fault}")
        log.warning("checkpoint %s is damaged (%s); looking at the one before", folder, fault)
    if damaged:
        raise UserError(
            f"no checkpoint in {root} is whole ({'; '.join(damaged)}); restore one, or remove the folder to start over"
        )
    return None


def at_step(root: Path, step: int) -> Path:
    """The checkpoint of one step; raises UserError when it is not there or not whole."""
    folder = root / name(step)
    fault = faults(folder) if folder.is_dir() else "there is none"
    if fault is not None:
        there = ", ".join(map(str, steps(root))) or "none"
        raise UserError(f"no whole checkpoint of step {step} in {root} ({fault}); steps there: {there}")
    return folder


def best(root: Path) -> dict[str, Any] | None:
    """{"checkpoint": folder name, "score": number} of the best so far; None where there is none any more, or a disk
    damaged the note of it."""
    try:
        noted = json.loads(files.read_bytes(root / "best"))
        score = float(noted["score"] + 0)
        own = Path(noted["checkpoint"]).name == noted["checkpoint"]
        return noted if own and (root / noted["checkpoint"]).is_dir() and score == score else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        log.warning("%s cannot be read; the best checkpoint is not known any more", root / "best")
        return None


def note_best(root: Path, step: int, score: float, of: str = "") -> bool:
    """Remembers the checkpoint of `step` if its score, lower is better, beats the best so far; whether it does.
    `of`: how it was measured; scores measured otherwise do not compare, and give way. One process calls it."""
    known = best(root)
    if known and known.get("of", "") == of and known["score"] <= score:
        return False
    files.write_json(root / "best", {"checkpoint": name(step), "score": score, **({"of": of} if of else {})})
    return True


@dataclass
class Pace:
    """What saving costs, against the time that the steps between take."""

    budget: float
    """largest share of that time; 0: any"""
    cost: float = 0.0
    """seconds that the last checkpoint took; none yet is taken for cheap"""
    since: float = field(default_factory=lambda: time.monotonic())
    warned: bool = False

    def affordable(self) -> bool:
        """Whether to save now; the first time that it is too dear there is a warning."""
        passed = time.monotonic() - self.since
        fine = self.budget == 0 or self.cost <= self.budget * passed
        if not fine and not self.warned:
            self.warned = True
            log.warning(
                "a checkpoint takes %.1f s, more than checkpoint.max_overhead=%g of the %.1f s since the last; saving "
                "less often than checkpoint.every says",
                self.cost,
                self.budget,
                passed,
            )
        return fine

    def note(self, began: float) -> None:
        """A save that began at `began` (time.monotonic) is done."""
        self.cost, self.since = time.monotonic() - began, time.monotonic()


class Checkpoints:
    """Writes, finds and prunes the checkpoints of a run. Every method is called by all ranks."""

    def __init__(self, root: Path, config: CheckpointConfig) -> None:
        self.root, self.config = root, config
        self.pace = Pace(config.max_overhead)

    def due(self, step: int, last: int) -> bool:
        """Whether to save after step number `step`: at multiples of config.every that are affordable, and at the
        `last`. Rank 0 decides, for clocks differ; steps do not depend on it."""
        if step == last or step % self.config.every:
            return step == last
        return process_group.broadcast_from_main(self.pace.affordable())

    def save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Path:
        """Commits what `write(folder)` writes, with `facts` in meta.json; then prunes older ones.

        Raises UserError when the disk refuses; the last good checkpoint is untouched then.
        """
        began = time.monotonic()
        temporary, final = self.root / f".tmp-{name(step)}", self.root / name(step)
        try:
            if process_group.is_main_process():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            process_group.barrier()
            write(temporary)
            process_group.barrier()
            if process_group.is_main_process():
                _commit(temporary, final, {"step": step, **facts})
                self._prune()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise  # not the disk: another rank is gone, say
            _make_room(temporary)
            raise UserError(
                f"cannot write checkpoint {final} ({error}); the one before it is untouched"
            ) from error
        process_group.barrier()
        self.pace.note(began)
        log.info("saved %s in %.2f s", final.name, self.pace.cost)
        return final

    def newest(self) -> Path | None:
        """The newest whole checkpoint; rank 0 decides for all, and renames damaged newer ones out of the way."""
        choice: Path | UserError | None = None
        if process_group.is_main_process():
            try:
                choice = newest_valid(self.root)
                self._set_aside(choice)
            except UserError as error:
                choice = error
        choice = process_group.broadcast_from_main(choice)
        if isinstance(choice, UserError):
            raise choice
        return choice

    def _set_aside(self, chosen: Path | None) -> None:
        """Damaged checkpoints newer than the chosen one must not count as kept ones."""
        for step in steps(self.root):
            folder = self.root / name(step)
            if chosen is None or folder.name <= chosen.name:
                return
            target = self.root / f"damaged-{folder.name}"
            shutil.rmtree(target, ignore_errors=True)
            os.rename(folder, target)
            files.write_text(self.root / "latest", chosen.name + "\n")

    def _prune(self) -> None:
        every, liked, there = self.config.keep_every, best(self.root), steps(self.root)
        rollback_target = next((step for step in there if healthy(self.root / name(step))), None)
        for step in there[self.config.keep :]:
            wanted = step == rollback_target or (liked and liked["checkpoint"] == name(step))
            if not wanted and not (every and step % every == 0):
                discard(self.root / name(step))
                progress.report()
        for leftover in self.root.glob(".tmp-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _make_room(folder: Path) -> None:
    """Frees what an unfinished checkpoint takes, for the log's last words; a file that is still open keeps its
    room unless it is cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    shutil.rmtree(folder, ignore_errors=True)


def discard(folder: Path) -> None:
    """Removes a checkpoint; at no moment is half of one under its name."""
    gone = folder.with_name(f".tmp-gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def leave(folder: Path) -> None:
    """Renames a checkpoint to left-NAME: kept, but no place to go on from. `best` follows it."""
    root, target = folder.parent, folder.with_name(f"left-{folder.name}")
    liked = best(root)
    if liked and liked["checkpoint"] == target.name:  # an earlier attempt's of this step, and better
        discard(folder)
        return
    shutil.rmtree(target, ignore_errors=True)
    os.rename(folder, target)
    if liked and liked["checkpoint"] == folder.name:
        files.write_json(root / "best", {**liked, "checkpoint": target.name})


def _commit(temporary: Path, final: Path, facts: dict[str, Any]) -> None:
    """Describes the files, marks the folder complete and moves it to its name; fsync before each promise."""
    everything = sorted(temporary.rglob("*"))
    paths = [path for path in everything if path.is_file()]
    described = {
        str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in paths
    }
    for path in everything:
        files.sync(path)
        progress.report()
    files.write_json(temporary / "meta.json", {**facts, "files": described})
    files.write_text(temporary / "COMPLETE", files.sha256(temporary / "meta.json") + "\n")
    if final.exists():
        discard(final)
    os.rename(temporary, final)
    files.sync(final.parent)
    files.write_text(final.parent / "latest", final.name + "\n")
