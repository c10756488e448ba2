"""A run whose ranks are killed many times:

    python kill_ranks.py KILLS SEED OVERRIDES...    # prints {"steps": N, "lost": [...]}

Ranks are forked from this process, which has imported everything, so that a restart takes one second instead of ten;
from there on they are as a launcher's: real processes, gloo, SIGKILL, files. With SLOW_WRITES=SECONDS in the
environment every file of a checkpoint takes so long, so that steps run while it is written.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ggcn.config.compose import compose
from ggcn.config.schema import Config
from ggcn.distributed.process_group import free_port
from ggcn.distributed.rank_info import RankInfo
from ggcn.launch import job
from ggcn.launch.signals import StopSignal
from ggcn.run import background_save, checkpoint
from ggcn.run.directory import RunDir

END_S = 90
"""seconds in which a run that lost a rank must have ended, on a busy machine"""


def last_line(run: Path) -> int:
    """The last step in metrics.jsonl, which may be torn."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


class Killer:
    """Chooses when to kill which rank, by `seed`; half of the times while a checkpoint is being written. Checks what a
    killed run leaves."""

    def __init__(self, run: Path, seed: int) -> None:
        self.run, self.random = run, random.Random(seed)
        self.lost: list[int] = []

    def wait(self) -> None:
        """Returns at a moment to kill."""
        before, began, saving = last_line(self.run), time.time(), self.random.random() < 0.5
        while time.time() < began + END_S:
            if saving and self._is_saving(began):
                return time.sleep(self.random.uniform(0, 0.03))
            if not saving and last_line(self.run) > before:
                return time.sleep(self.random.uniform(0, 0.4))
            time.sleep(0.001)
        raise AssertionError("the run makes no progress")

    def _is_saving(self, since: float) -> bool:
        """Whether a checkpoint is being written, other than one that an earlier kill left unfinished."""
        for folder in (self.run / "checkpoints").glob(".tmp-step_*"):
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime > since:
                    return True
        return False

    def check_checkpoints(self, every: int) -> None:
        """Every folder with a checkpoint's name is valid, and at most one interval is lost, and the one in which a
        checkpoint was being written."""
        root = self.run / "checkpoints"
        there = checkpoint.steps(root)
        faults = {step: checkpoint.faults(root / checkpoint.name(step)) for step in there}
        assert set(faults.values()) <= {None}, faults
        self.lost.append(last_line(self.run) - max(there, default=0))
        assert self.lost[-1] <= 2 * every, (last_line(self.run), there)


def start_ranks(config: Config, run: RunDir) -> list[int]:
    """Starts the ranks of an attempt; returns their process ids."""
    run.freeze(config)
    port, world = free_port(), config.cluster.ranks or 1
    return [_fork(run, RankInfo(rank, world, rank, world, port=port)) for rank in range(world)]


def _fork(run: RunDir, rank_info: RankInfo) -> int:
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        os._exit(job.exit_code(run, rank_info, StopSignal().install()))
    return pid


def wait_for_exit(pids: list[int]) -> list[int]:
    """Waits for the ranks; their exit codes, negative for a signal. Raises AssertionError when one hangs."""
    codes: dict[int, int] = {}
    limit = time.monotonic() + END_S
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        assert time.monotonic() < limit, "a rank hangs"
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def slow_down_writes(seconds: float) -> None:
    """Makes each file of a checkpoint take about so many seconds."""
    write_file = background_save.write_file

    def slow(path: Path, value: object) -> dict:
        time.sleep(random.uniform(0, 2 * seconds))
        return write_file(path, value)

    background_save.write_file = slow


def main(kills: int, seed: int, overrides: list[str]) -> None:
    config = compose(
        [*overrides, "run=killed", "train.steps=100000", "checkpoint.every=3", "checkpoint.keep=3"]
    )
    run = RunDir.of(config)
    killer = Killer(run.path, seed)
    for _ in range(kills):
        pids = start_ranks(config, run)
        killer.wait()
        victim = killer.random.choice(pids)
        os.kill(victim, signal.SIGKILL)
        codes = wait_for_exit(pids)
        assert codes[pids.index(victim)] == -signal.SIGKILL
        assert 0 not in codes
        killer.check_checkpoints(every=3)
    steps = last_line(run.path) + 10
    finish(config, steps)
    finish(replace(config, run="uninterrupted", checkpoint=replace(config.checkpoint, every=100000)), steps)
    print(json.dumps({"steps": steps, "lost": killer.lost}))


def finish(config: Config, steps: int) -> None:
    """Trains to the end without a kill."""
    config = replace(config, train=replace(config.train, steps=steps))
    codes = wait_for_exit(start_ranks(config, RunDir.of(config)))
    assert set(codes) == {0}, codes


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401 (imported by the first optimizer)
    from torch.utils import tensorboard  # noqa: F401

    import ggcn.engine.zero
    import ggcn.training.trainer  # noqa: F401

    slow_down_writes(float(os.environ.get("SLOW_WRITES", "0")))
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
