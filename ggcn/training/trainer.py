"""The training loop."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from ggcn import report
from ggcn.config.schema import Config
from ggcn.data import stream
from ggcn.data.decoding import refuse_downsampling
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning import augmentation
from ggcn.learning.learner import Learner, Metrics
from ggcn.run import checkpoint, sample_images
from ggcn.run.directory import RunDir
from ggcn.run.heartbeat import Heartbeat
from ggcn.run.metric_logger import has_step
from ggcn.training import guard, out_of_memory, rollback, sample_page, warm_start
from ggcn.training.background import BackgroundWork
from ggcn.training.evaluation import EvaluationHook
from ggcn.training.fit_monitor import FitMonitor
from ggcn.training.guard import Verdict
from ggcn.training.recorder import Recorder
from ggcn.training.samplers import Samplers
from ggcn.training.saving import Saving
from ggcn.training.state import State

log = logging.getLogger(__name__)


class StopRequest(Protocol):
    """Says whether this rank was asked to stop."""

    @property
    def requested(self) -> bool: ...


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended."""

    step: int
    """steps completed, all of them saved"""
    finished: bool
    """False when it was asked to stop before its last step"""
    background: BackgroundWork = field(default_factory=BackgroundWork)
    """what may still be running: writing sample images and the report"""


def train(
    config: Config, run: RunDir, stop: StopRequest, device: torch.device, heartbeat: Heartbeat
) -> TrainResult:
    """Trains from the newest checkpoint to config.train.steps, or until any rank is asked to stop.

    Every rank calls it. Raises UserError when the run cannot continue.
    """
    trainer = Trainer(config, run, device, heartbeat)
    rank = torch.distributed.get_rank()
    with out_of_memory.explained(config, trainer.recorder.timer, device, run.profile, rank):
        step = trainer.resume()
        try:
            return trainer.train(step, stop)
        finally:
            trainer.close()


class Trainer:
    """A run in training: its networks and data, and what records and guards it. All ranks call every method."""

    def __init__(self, config: Config, run: RunDir, device: torch.device, heartbeat: Heartbeat) -> None:
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.config, self.run, self.device, self.heartbeat = config, run, device, heartbeat
        self.lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
        self.saving = Saving(config, run, heartbeat)
        self.checkpoints = self.saving.checkpoints
        self.evaluation_hook = EvaluationHook(config, run, device) if config.evaluation.every else None
        adapts = config.train.augmentation.adapt_every
        measure_fit = config.log.r2_every or adapts or config.checkpoint.best_by == "r2_heldout"
        transport = config.model.flow.objective == "transport"
        self.fit_monitor = FitMonitor(config, run) if transport and measure_fit else None
        self.samplers = Samplers(config)
        self.background = BackgroundWork()
        self.recorder = Recorder(config, run, self.lanes, device, heartbeat.watchdog)
        self.outcome = "failed"
        self.build()

    def build(self) -> None:
        """Networks, engines and chains, as at step 0."""
        self.warm_start = warm_start.read(self.config, self.run)
        networks = self.warm_start.networks if self.warm_start else None
        self.learner = Learner(self.config, self.lanes, self.device, networks)
        self.state = State(self.config, self.lanes, self.learner, self.device)

    def train(self, step: int, stop: StopRequest) -> TrainResult:
        """Trains from `step` completed steps on, in phases that are timed; numbers of steps count from 1."""
        timer, stopping = self.recorder.timer, False
        if self.fit_monitor and step > 0:  # the process may have ended before this checkpoint was measured
            self.fit_monitor.record_best(self.learner, step, self.checkpoints.when_saved)
        if self.evaluation_missing(step):
            self.evaluate(step)
        while step < self.config.train.steps and not stopping:
            with self.recorder.step(step):
                with timer.phase("data"):
                    batch = self.next_batch()
                    data = self.learner.prepare_data(batch.images, step)
                with timer.phase("sample"):
                    particles = self.learner.sample(step, data)
                with timer.phase("energy"):
                    metrics = self.learner.learn_energy(data, particles, step)
                with timer.phase("upsampler"):
                    metrics |= self.learner.learn_upsamplers(particles, step)
                metrics |= self.learner.chain_metrics(particles) | self.data_metrics(batch, data)
                values, stopping = self.reduce_metrics(metrics | self.state.weight_norms(), stop)
                verdict = self.judge(step + 1, values)
                if verdict.health == guard.DIVERGED:
                    step = self.roll_back(step + 1, verdict, values)
                    continue
                self.learner.update_averages(step, particles)
            step += 1
            self.recorder.step_done(step)
            own_s = timer.seconds["seconds/data"] + timer.seconds["seconds/sample"]
            self.heartbeat.step_done(step, own_s)
            self.adapt_augmentation(step)
            self.saving.watch(step)
            self.log_metrics(step, values, verdict)
            if self.due(step, self.config.log.samples_every):
                self.save_samples(step, batch.images)
            evaluating = self.evaluation_due(step) and not stopping  # there may be only seconds left to stop
            if stopping or evaluating or self.checkpoints.due(step, self.config.train.steps):
                self.save_checkpoint(step)
            if evaluating:
                self.evaluate(step)
        finished = step >= self.config.train.steps
        with self.recorder.ledger.timed("checkpoint"):
            self.saving.finish(step, finished)
        self.outcome = "finished" if finished else "stopped"
        return TrainResult(step, finished, self.background)

    def resume(self) -> int:
        """Restores the newest valid checkpoint, or initializes a new run; opens the data and the logs at its step.
        Returns the number of completed steps."""
        is_main, keep_every = process_group.is_main_process(), self.config.checkpoint.keep_every
        attempt = process_group.broadcast_from_main(
            rollback.apply_rollback(self.run, keep_every) if is_main else 0
        )
        folder = self.checkpoints.newest()
        metadata: dict[str, Any] = checkpoint.meta(folder) if folder else {"step": 0}
        step = int(metadata["step"])
        self.replaced = int(metadata.get("replaced", 0))
        self.history = guard.History(**metadata.get("guard", {}))
        if metadata.get("config") != rollback.config_hash(self.config):
            self.history = guard.forget_usual(self.history)
        self.learner.attempt = max(attempt, int(metadata.get("attempt", 0)))
        self.learner.augmentation = float(metadata.get("augmentation", self.learner.augmentation))
        self.open_data(step)
        if folder:
            self.state.restore(folder, metadata, self.stream.hash)
            log.info("resumed from %s", folder)
            if self.saving.copies:
                self.saving.copies.offer(folder)
        else:
            warm_start.begin(self.config, self.learner, self.warm_start)
        process_group.barrier()  # a rank may have more shards to verify, and a step's collectives do not wait so long
        self.recorder.open(step, self.learner.attempt)
        return step

    def open_data(self, step: int) -> None:
        """Opens the stream of batches at `step`. Raises UserError when the shards do not suit the model."""
        config, pin = self.config, self.device.type == "cuda"
        self.stream = stream.build(
            config.data, self.lanes, config.seed, config.model.grids[-1], step, pin=pin
        )
        for data in self.stream.folders:  # the launcher checks local ones only
            refuse_downsampling(data.url, data.manifest, config.model.grids, config.data)

    def roll_back(self, step: int, verdict: Verdict, values: dict[str, float]) -> int:
        """Records that the run diverged at `step`, then does what a new process would do: it resumes from the last
        healthy checkpoint, or the initial weights. Returns the step. Raises UserError after too many rollbacks."""
        self.recorder.pause(self.background)
        with self.heartbeat.during_rollback():
            self.background.wait()  # the data's new workers are forked, which does not go well with threads
            self.checkpoints.finish()
            self.stream.close()
            details = self.config.guard, self.run, step, self.learner.attempt, verdict, values
            incident = process_group.broadcast_from_main(
                rollback.record_incident(*details) if process_group.is_main_process() else None
            )
            if incident["gave_up"]:
                raise rollback.give_up_error(self.run, incident, self.config.guard)
            log.warning("step %d diverged (%s); going back to step %d", *rollback.summary(incident))
            self.learner.close()
            del self.learner, self.state
            gc.collect()  # networks and optimizers of two learners might not fit
            self.build()
            return self.resume()

    def close(self) -> None:
        """Ends the data's workers and closes the logs; an open progress bar would share its line with an error. After a
        failure a checkpoint may be in flight, which is saved if it can be."""
        self.recorder.close(self.outcome, self.background)
        self.stream.close()
        self.checkpoints.abandon()

    def next_batch(self) -> stream.Batch:
        """This rank's images of the next step; replacements of images that cannot be decoded are logged."""
        batch = next(self.stream)
        for fault in batch.faults:
            log.warning("sample %s of %s was replaced: %s", fault.sample, fault.shard, fault.reason)
        return batch

    def data_metrics(self, batch: stream.Batch, data: list[Tensor]) -> Metrics:
        """The share of the batch's images that replace undecodable ones, and of each grid's pixels at or beyond -1
        or 1."""
        replaced = torch.tensor(len(batch.faults) / len(batch.ids), device=self.device)
        levels = zip(self.learner.grids, data, strict=True)
        saturation = {
            f"data_saturation/{grid.size}": (level.abs() >= 1).float().mean() for grid, level in levels
        }
        return {"replaced_share": replaced, **saturation}

    def reduce_metrics(self, metrics: Metrics, stop: StopRequest) -> tuple[dict[str, float], bool]:
        """The global batch's metrics, and whether any rank was asked to stop, in one all-reduce."""
        requested = torch.tensor(float(stop.requested), device=self.device)
        local = [value.reshape(()).double() for value in (*metrics.values(), requested)]
        *values, requests = process_group.all_reduce_mean(torch.stack(local)).tolist()
        return dict(zip(metrics, values, strict=True)), requests > 0

    def judge(self, step: int, values: dict[str, float]) -> Verdict:
        """The guard's verdict on the step. Raises UserError when too many images were replaced or, without a guard,
        when a value is not finite."""
        self.replaced += round(values["replaced_share"] * self.config.train.batch)
        stream.check_bad_share(self.replaced, step * self.config.train.batch, self.config.data)
        if self.config.guard.enabled:
            self.history, verdict = guard.judge(self.config.guard, self.history, values)
            return verdict
        not_finite = [name for name, value in values.items() if not isfinite(value)]
        if not_finite:
            raise UserError(
                f"training diverged at step {step} ({', '.join(not_finite)}); the last checkpoint is valid; "
                "lower train.energy.lr or model.chain.step_size"
            )
        return Verdict("unwatched")

    def log_metrics(self, step: int, values: dict[str, float], verdict: Verdict) -> None:
        """Adds the fit of the regression where it is due, and writes a line where one is due."""
        settings = self.config.log
        measure_fit = self.fit_monitor and settings.r2_every and self.due(step, settings.r2_every)
        if self.fit_monitor and measure_fit:
            values = values | self.fit_monitor.measure(self.learner, step)
        self.recorder.log(step, values, verdict, bool(measure_fit) or self.due(step, settings.every))

    def adapt_augmentation(self, step: int) -> None:
        """Adapts the fraction of augmented pairs to the fit on held-out images, where it is due."""
        settings = self.config.train.augmentation
        if not self.fit_monitor or "r2_heldout" not in self.fit_monitor.sets or not settings.adapt_every:
            return
        if step % settings.adapt_every == 0:
            fit = self.fit_monitor.measure(self.learner, step)
            self.learner.augmentation = augmentation.adapted(settings, self.learner.augmentation, fit)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens at multiples of `every`, and at the last step, happens at `step`."""
        return step % every == 0 or step == self.config.train.steps

    def save_samples(self, step: int, images: Tensor) -> None:
        """Writes samples/step_N.png, below data from `images`. Files and report are written in the background."""
        with self.main_process_work(step, "samples") as is_main_process:
            sampler = self.samplers.sampler(self.learner, step)
            if not is_main_process:
                return
            settings, folder = self.config.log, self.run.samples
            buffer = self.learner.replay_buffer
            chains = buffer.chains.flatten(0, 1) if buffer else None
            rows = sample_page.draw_rows(sampler, settings.samples, images, chains)
            page, finest = sample_page.render(sampler, step, rows)
            self.background.start(
                "writing samples",
                lambda: sample_images.write(page, finest, folder / f"step_{step:06d}.png", step),
                lambda: self.recorder.track_samples(step, folder / f"step_{step:06d}.png"),
                lambda: sample_images.prune(folder, settings.samples_kept, settings.samples_every),
                lambda: report.write(self.run),
            )

    @contextmanager
    def between(self, step: int, kind: str) -> Iterator[None]:
        """Around work between two steps, of which the watchdog and the books of the run's time take note."""
        with self.heartbeat.between(step, kind), self.recorder.ledger.timed(kind):
            yield

    @contextmanager
    def main_process_work(self, step: int, kind: str) -> Iterator[bool]:
        """Around work of rank 0 for which the others wait; whether this is rank 0."""
        with self.between(step, kind):
            yield process_group.is_main_process()
            process_group.barrier()

    def save_checkpoint(self, step: int) -> None:
        """Copies what a checkpoint of this step holds, which is then written while training goes on."""
        judgement = {
            "health": guard.health(self.history),
            "guard": asdict(self.history),
            "config": rollback.config_hash(self.config),
        }
        progress = {
            "replaced": self.replaced,
            "attempt": self.learner.attempt,
            "augmentation": self.learner.augmentation,
        }
        with self.between(step, "checkpoint"):
            sampling = self.samplers.metadata(self.learner, step)
            metadata = self.state.metadata(self.stream.hash) | progress | judgement | sampling
            self.saving.save(step, self.state, metadata)
            if self.fit_monitor:
                self.fit_monitor.record_best(self.learner, step, self.checkpoints.when_saved)

    def evaluation_due(self, step: int) -> bool:
        """Whether samples are evaluated after this step."""
        every = self.config.evaluation.every
        return every > 0 and self.due(step, every)

    def evaluation_missing(self, step: int) -> bool:
        """Whether the checkpoint from which the run resumes should have been evaluated and was not."""
        due = self.evaluation_due(step) and step > 0
        return due and not process_group.broadcast_from_main(has_step(self.run.evaluations, step))

    def evaluate(self, step: int) -> None:
        """Evaluates fresh samples against the training images, and refreshes the report."""
        assert self.evaluation_hook is not None
        with self.main_process_work(step, "evaluation") as is_main_process:
            sampler = self.samplers.sampler(self.learner, step)
            distances = self.evaluation_hook.evaluate(sampler, step, self.checkpoints.join)
            if is_main_process:
                self.recorder.track_evaluation(step, distances)
                self.background.start("report.html", lambda: report.write(self.run))
