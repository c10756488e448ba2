"""Checkpoints of a run in training: copied between two steps, then written and copied elsewhere next to others."""

from functools import partial
from typing import Any

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.run import host_memory
from ggcn.run.checkpoint_copies import CheckpointCopies
from ggcn.run.checkpoint_saver import Checkpoints
from ggcn.run.directory import RunDir
from ggcn.run.heartbeat import Heartbeat
from ggcn.training.state import State


class Saving:
    """The checkpoints of a run, the watch over the one in flight, and their copies. All ranks call every method."""

    def __init__(self, config: Config, run: RunDir, heartbeat: Heartbeat) -> None:
        """Raises UserError where checkpoint.copy_to cannot be used."""
        self.heartbeat, url = heartbeat, config.checkpoint.copy_to
        self.copies = CheckpointCopies(run, url) if url and process_group.is_main_process() else None
        record = partial(heartbeat.record, "checkpoint")
        self.checkpoints = Checkpoints(run.checkpoints, config.checkpoint, record, self.copies)

    def save(self, step: int, state: State, metadata: dict[str, Any]) -> None:
        """Copies the state, which is then written while training goes on; where there is no memory for a copy, training
        waits until it is written."""
        copy = host_memory.has_room_for(state.bytes())
        self.checkpoints.save(step, partial(state.contents, copy), metadata, wait=not copy)

    def watch(self, step: int) -> None:
        """Takes note of a save that is over. One that makes no progress is waited for, so that the watchdog ends a save
        that hangs, as it ends a step."""
        limit_s = self.heartbeat.watchdog.silence_s
        if limit_s and self.checkpoints.silent_s() > limit_s:
            with self.heartbeat.between(step, "checkpoint"):
                self.checkpoints.join()
        self.checkpoints.poll()

    def finish(self, step: int, finished: bool) -> None:
        """Returns when the last checkpoint is complete and, if the run is `finished`, copied: a stop must be quick, and
        the next attempt copies."""
        with self.heartbeat.between(step, "checkpoint"):
            self.checkpoints.finish()
            if self.copies and finished:
                self.copies.finish()
            process_group.barrier()
