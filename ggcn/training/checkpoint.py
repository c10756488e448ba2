"""Checkpoints that are whole or do not count.

checkpoints/.tmp-step_N/ -> rename -> checkpoints/step_N/
    energy/, upsampler/    the engines' state
    ema.pt                 averaged weights: all that a sampler needs
    meta.json              step, world size, engine, hash of the data, size and sha256 of every file
    COMPLETE               sha256 of meta.json, written last
checkpoints/latest         name of the newest, replaced atomically
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn import files, ranks
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
    if not complete.exists():
        return "COMPLETE is missing"
    if not described.exists() or files.sha256(described) != complete.read_text().strip():
        return "meta.json was altered"
    for path, entry in meta(folder)["files"].items():
        file = folder / path
        if not file.is_file():
            return f"{path} is missing"
        if file.stat().st_size != entry["bytes"] or (deep and files.sha256(file) != entry["sha256"]):
            return f"{path} was altered"
    return None


def meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return json.loads((folder / "meta.json").read_text())


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first, whole or not."""
    found = [path.name.removeprefix(PREFIX) for path in root.glob(f"{PREFIX}*")]
    return sorted((int(step) for step in found if step.isdigit()), reverse=True)


def newest_whole(root: Path, deep: bool = True) -> Path | None:
    """The newest checkpoint that is whole, with a warning for each damaged one passed over; None if there is none.

    Raises UserError when there are checkpoints and not one is whole.
    """
    damaged = []
    for step in steps(root):
        folder = root / name(step)
        fault = faults(folder, deep)
        if fault is None:
            return folder
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


@dataclass(frozen=True)
class Checkpoints:
    """Writes, finds and prunes the checkpoints of a run. Every method is called by all ranks."""

    root: Path
    keep: int
    """newest ones kept"""
    keep_every: int
    """multiples of this many steps are kept for good; 0: none"""

    def save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Path:
        """Commits what `write(folder)` writes, with `facts` in meta.json; then prunes older ones.

        Raises UserError when the disk refuses; the last good checkpoint is untouched then.
        """
        temporary, final = self.root / f".tmp-{name(step)}", self.root / name(step)
        try:
            if ranks.is_first():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            ranks.barrier()
            write(temporary)
            ranks.barrier()
            if ranks.is_first():
                _commit(temporary, final, {"step": step, **facts})
                self._prune()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise  # not the disk: another rank is gone, say
            raise UserError(
                f"cannot write checkpoint {final} ({error}); the one before it is untouched"
            ) from error
        ranks.barrier()
        return final

    def newest(self) -> Path | None:
        """The newest whole checkpoint; rank 0 decides for all, and renames damaged newer ones out of the way."""
        choice: Path | UserError | None = None
        if ranks.is_first():
            try:
                choice = newest_whole(self.root)
                self._set_aside(choice)
            except UserError as error:
                choice = error
        choice = ranks.from_first(choice)
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
        for step in steps(self.root)[self.keep :]:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.root / name(step), ignore_errors=True)
        for leftover in self.root.glob(".tmp-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


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
    files.write_json(temporary / "meta.json", {**facts, "files": described})
    files.write_text(temporary / "COMPLETE", files.sha256(temporary / "meta.json") + "\n")
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    files.sync(final.parent)
    files.write_text(final.parent / "latest", final.name + "\n")
