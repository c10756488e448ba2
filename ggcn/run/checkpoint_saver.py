"""Saves the checkpoints of a run in the background, and prunes them."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ggcn import files, progress
from ggcn.config.schema import CheckpointConfig
from ggcn.distributed import process_group
from ggcn.errors import UserError
from ggcn.run import background_save, checkpoint
from ggcn.run.background_save import BackgroundSave, Entries
from ggcn.run.checkpoint import name, steps
from ggcn.run.checkpoint_copies import CheckpointCopies
from ggcn.run.save_budget import SaveBudget

log = logging.getLogger(__name__)

PATIENCE_S = 5
"""seconds without progress after which a run that failed no longer waits for the checkpoint in flight"""


class Checkpoints:
    """Saves, finds and prunes the checkpoints of a run. All ranks call every method, unless it says otherwise.

    At most one save is in flight, on all ranks together. Whoever reads checkpoints calls `finish` first.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        on_saved: Callable[[float], None] = lambda seconds: None,
        copies: CheckpointCopies | None = None,
    ) -> None:
        """`on_saved` is called with the seconds that a save took, in the thread that calls the methods. `copies`: on
        rank 0, what copies each checkpoint elsewhere."""
        self.root, self.config, self.on_saved, self.copies = root, config, on_saved, copies
        self.budget = SaveBudget(config.max_overhead)
        self.count = 0
        self.running: BackgroundSave | None = None
        self._when_saved: list[Callable[[], object]] = []

    def due(self, step: int, last: int) -> bool:
        """Whether to save after step number `step`: at multiples of config.every that the budget allows, and at the
        `last`. Rank 0 decides, since clocks differ; no other result depends on it."""
        if step == last or step % self.config.every:
            return step == last
        busy = self.running is not None and not self.running.done
        return process_group.broadcast_from_main(self.budget.allows_save(busy))

    def save(
        self, step: int, copy: Callable[[], dict[str, Any]], metadata: dict[str, Any], wait: bool = False
    ) -> None:
        """Starts to save what `copy()` returns, {path in the checkpoint: value}, with `metadata` in meta.json; older
        checkpoints are then pruned. The values must not change afterwards. With `wait` it returns when this rank's part
        is over.

        Raises UserError when the disk fails, now or for the save before this one: what is complete stays untouched.
        """
        began = time.monotonic()
        self.join()
        temporary, final = self.root / f".tmp-{name(step)}", self.root / name(step)
        if process_group.is_main_process():
            _make_empty(temporary, final)
        process_group.barrier()  # on all ranks the save before is over
        self.count += 1
        finish = partial(self._commit, temporary, final, {"step": step, **metadata}, began)
        self.running = BackgroundSave(f"save/{self.count}", temporary, copy(), finish, began)
        self._final = final
        if wait:
            self.join()
        self.budget.record_save(began)

    def _commit(
        self, temporary: Path, final: Path, metadata: dict[str, Any], began: float, entries: Entries
    ) -> None:
        """In the thread of rank 0."""
        background_save.commit(temporary, final, metadata, entries)
        if self.copies:
            self.copies.offer(final)
        self._prune()
        log.info("saved %s in %.2f s", final.name, time.monotonic() - began)

    def poll(self) -> None:
        """Takes note of a save that is over. A rank may call it alone. Raises UserError when the disk failed."""
        if self.running and self.running.done:
            self.join()

    def join(self) -> None:
        """Returns when this rank's part of the save in flight is over; on rank 0 that includes the commit. A rank may
        call it alone. Raises UserError when the disk failed."""
        if self.running is None:
            return
        self.running.join()
        done, self.running = self.running, None
        tasks, self._when_saved = self._when_saved, []
        if done.error:
            _raise_explained(done.error, self._final)
        self.on_saved(done.seconds)
        for task in tasks:
            task()

    def finish(self) -> None:
        """Returns when no save is in flight on any rank. Raises UserError when the disk failed."""
        self.join()
        process_group.barrier()

    def abandon(self) -> None:
        """After a failure: lets the save in flight come to its end, unless it depends on a rank that has ended. Raises
        nothing."""
        if self.running:
            self.running.abandon(PATIENCE_S)
            if self.running.error:
                log.warning("%s was not saved (%s)", self._final.name, self.running.error)
            self.running = None

    def silent_s(self) -> float:
        """Seconds for which this rank's save in flight has made no progress; 0 when there is none."""
        return self.running.silent_s() if self.running and not self.running.done else 0.0

    def when_saved(self, task: Callable[[], object]) -> None:
        """Calls `task` when the save in flight is over, in the thread that asks for that; now if there is none. A rank
        may call it alone."""
        if self.running:
            self._when_saved.append(task)
        else:
            task()

    def newest(self) -> Path | None:
        """The newest valid checkpoint; rank 0 decides for all, and renames damaged newer ones to damaged-NAME."""
        choice: Path | UserError | None = None
        if process_group.is_main_process():
            try:
                choice = checkpoint.newest_valid(self.root)
                self._rename_damaged(choice)
            except UserError as error:
                choice = error
        choice = process_group.broadcast_from_main(choice)
        if isinstance(choice, UserError):
            raise choice
        return choice

    def _rename_damaged(self, chosen: Path | None) -> None:
        """Renames what is newer than `chosen`, which is damaged and must not count among those to keep."""
        for step in steps(self.root):
            folder = self.root / name(step)
            if chosen is None or folder.name <= chosen.name:
                return
            target = self.root / f"damaged-{folder.name}"
            shutil.rmtree(target, ignore_errors=True)
            os.rename(folder, target)
            files.write_text(self.root / "latest", chosen.name + "\n")

    def _prune(self) -> None:
        """Removes old checkpoints, but not the best, the newest healthy one, one that is being copied and multiples of
        keep_every."""
        every, existing = self.config.keep_every, steps(self.root)
        best_name = (checkpoint.best(self.root) or {}).get("checkpoint")
        rollback_target = next(
            (step for step in existing if checkpoint.healthy(self.root / name(step))), None
        )
        busy = self.copies.current.name if self.copies and self.copies.current else ""
        for step in existing[self.config.keep :]:
            needed = step == rollback_target or name(step) in (best_name, busy)
            if not (needed or (every and step % every == 0)):
                checkpoint.discard(self.root / name(step))
                progress.report()
        for leftover in self.root.glob(".tmp-*"):
            if leftover.name.startswith(f".tmp-{os.getpid()}-"):
                continue  # another thread is about to replace a file
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _make_empty(temporary: Path, final: Path) -> None:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        _raise_explained(error, final)


def _raise_explained(error: Exception, final: Path) -> NoReturn:
    """Raises UserError for a disk that failed, else the error itself."""
    if not background_save.is_disk_failure(error):
        raise error
    raise UserError(f"cannot write checkpoint {final} ({error}); the one before it is untouched") from error
