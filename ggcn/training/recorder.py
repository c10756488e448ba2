"""What a run records of itself: metrics for the log and the trackers, where its time went, profiles of its steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from ggcn.config.interpolation import unresolved
from ggcn.config.keys import flatten
from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.run.directory import RunDir
from ggcn.run.goodput import Ledger
from ggcn.run.metric_logger import MetricLogger, PhaseTimer, memory_usage, truncate_after
from ggcn.run.watchdog import Watchdog
from ggcn.tracking import TrackedRun, Trackers
from ggcn.tracking.base import public, run_key
from ggcn.training.background import BackgroundWork
from ggcn.training.flight_recorder import HangDump
from ggcn.training.guard import Verdict
from ggcn.training.optimizer_metrics import OptimizerMetrics
from ggcn.training.profiling import StepProfiler
from ggcn.training.utilization import Utilization, device_peak


class Recorder:
    """The records of a run in training. All ranks have one; rank 0's writes the log and feeds the trackers."""

    def __init__(
        self, config: Config, run: RunDir, lanes: Lanes, device: torch.device, watchdog: Watchdog
    ) -> None:
        rank = lanes.rank
        self.config, self.run, self.device = config, run, device
        self.timer = PhaseTimer(device)
        self.ledger = Ledger(run.path if rank == 0 else None)
        self.optimizer_metrics = OptimizerMetrics(config.train)
        peak = device_peak(device, config.engine.precision, config.log.peak_tflops)
        self.utilization = Utilization(peak, config, lanes, device)
        self.profiler = StepProfiler(config.profile, run.profile, rank, device)
        self.hang_dump = HangDump(run.profile / f"collectives_rank_{rank:04d}.json", watchdog)
        self.logger: MetricLogger | None = None  # on rank 0 only

    def open(self, step: int, attempt: int) -> None:
        """Opens the logs at `step` completed steps, without the lines of later ones."""
        if process_group.is_main_process():
            truncate_after(self.run.evaluations, step)
            trackers = Trackers(self.config.log.trackers, self._tracked_run(), step, attempt)
            steps, batch = self.config.train.steps, self.config.train.batch
            self.logger = MetricLogger(self.run, step, steps, batch, trackers)
        self.ledger.open(step)

    def _tracked_run(self) -> TrackedRun:
        """What trackers are told of the run."""
        settings = public(flatten(unresolved(self.config)))
        path = self.run.path
        return TrackedRun(self.config.run, str(path), run_key(path), self.config.log.project, settings)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around the work of step number `step`, from 0."""
        with self.profiler.step(step + 1), self.timer.phase("step"):
            yield

    def step_done(self, step: int) -> None:
        """Takes note of the time of the step after which `step` steps are completed."""
        self.ledger.step_done(step, self.timer.seconds["seconds/step"])
        self.utilization.add(step - 1, self.timer.seconds["seconds/step"])

    def log(self, step: int, values: dict[str, float], verdict: Verdict, write: bool) -> None:
        """Shows a step and, where `write` says so, writes a line of its metrics and of the times since the last one."""
        self.optimizer_metrics.add(values)
        if self.logger:
            self.logger.advance(values, verdict.health)
            if write:
                more = self.optimizer_metrics.pop(step) | self.throughput()
                self.logger.log(step, values | more, verdict.log_fields())

    def throughput(self) -> dict[str, float]:
        """Seconds per phase, images per second over all ranks and operations per second of this one since the last
        line; goodput of the run; memory of this rank."""
        seconds = self.timer.pop_means()
        rates = {
            "images_per_second": self.config.train.batch / seconds["seconds/step"],
            **self.utilization.pop(),
            "goodput": self.ledger.goodput().share,
        }
        return {**seconds, **rates, **memory_usage(self.device)}

    def track_samples(self, step: int, sheet: Path) -> None:
        """Sends a sheet of samples to the trackers."""
        if self.logger:
            self.logger.trackers.image(step, "samples", sheet)

    def track_evaluation(self, step: int, distances: dict[str, float]) -> None:
        """Sends the distances of an evaluation to the trackers."""
        if self.logger:
            self.logger.trackers.log(step, distances, "evaluation")

    def pause(self, background: BackgroundWork) -> None:
        """Closes the logs before a roll-back, after which `open` opens them again."""
        self._end_logs("stopped", background)

    def _end_logs(self, outcome: str, background: BackgroundWork) -> None:
        if self.logger:
            self.logger.close()
            background.start("trackers", partial(self.logger.trackers.end, outcome))

    def close(self, outcome: str, background: BackgroundWork) -> None:
        """Ends all records; `outcome` as in Tracker.finish. Trackers finish in the background."""
        self.hang_dump.close()
        self.profiler.write()
        if self.ledger.current:
            self.ledger.write(self.ledger.current.step)
        self._end_logs(outcome, background)
