"""Traces of chosen steps, in RUN/profile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ggcn.config.schema import ProfileConfig

log = logging.getLogger(__name__)

ROWS = 40
"""operations in the table"""


class StepProfiler:
    """Profiles the steps that profile.steps names, on the ranks that profile.ranks names.

    RUN/profile/rank_0000_steps_20-24.json.gz is a trace for https://ui.perfetto.dev or chrome://tracing, and .txt next
    to it a table of the operations that took longest.
    """

    def __init__(self, config: ProfileConfig, folder: Path, rank: int, device: torch.device) -> None:
        wanted = bool(config.steps) and rank in config.ranks
        self.first, self.last = (config.steps[0], config.steps[-1]) if wanted else (0, -1)
        self.stacks, self.folder, self.rank, self.device = config.stacks, folder, rank, device
        self.profile: profile | None = None
        self.began = self.done = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, counted from 1."""
        if not self.first <= number <= self.last:
            yield
            return
        if self.profile is None:
            self._start(number)
        yield
        self.done = number
        if number == self.last:
            self.write()

    def _start(self, number: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.began = number
        self.profile = profile(activities=activities, record_shapes=True, with_stack=self.stacks)
        self.profile.start()

    def write(self) -> None:
        """Writes what was profiled, also where the run stops or fails before the last of the steps. A disk that
        refuses it is no reason to end the run."""
        if self.profile is None:
            return
        recorded, self.profile = self.profile, None
        recorded.stop()
        if self.done < self.began:
            return
        base = self.folder / f"rank_{self.rank:04d}_steps_{self.began}-{self.done}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(f"{base}.json.gz")
            Path(f"{base}.txt").write_text(table(recorded, self.device), encoding="utf-8")
        except OSError as error:
            log.warning("the profile of steps %d to %d was not written: %s", self.began, self.done, error)


def table(recorded: profile, device: torch.device) -> str:
    """The operations that took longest themselves, longest first."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = recorded.key_averages(group_by_input_shape=True)
    return str(averages.table(sort_by=key, row_limit=ROWS, max_shapes_column_width=60)) + "\n"
