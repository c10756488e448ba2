"""The training loop."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import isfinite
from threading import Thread
from typing import Any, Protocol

import torch
from torch import Tensor

from ggcn import image_grid, report
from ggcn.config.data import DataConfig
from ggcn.config.schema import Config
from ggcn.data import stream
from ggcn.data.decoding import refuse_smaller
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.evaluation.images import LEAST, batches
from ggcn.learning.learner import Learner, Metrics
from ggcn.models import fitted
from ggcn.run import checkpoint, sample_images
from ggcn.run.checkpoint import Checkpoints
from ggcn.run.directory import RunDir
from ggcn.run.heartbeat import Heartbeat
from ggcn.run.metric_logger import MetricLogger, Stopwatch, forget_after, has_step, memory
from ggcn.sampling.sampler import Sampler
from ggcn.training import guard
from ggcn.training.evaluation import Scorer
from ggcn.training.fit_monitor import FitMonitor
from ggcn.training.guard import Verdict
from ggcn.training.state import State

log = logging.getLogger(__name__)


class StopRequest(Protocol):
    """Somebody who may want the run to stop."""

    @property
    def wanted(self) -> bool: ...


class Aside:
    """Work of rank 0 that neither its next steps nor other ranks wait for: one piece at a time, beside the training.

    What fails is logged; no run shall fail for it.
    """

    def __init__(self) -> None:
        self.thread: Thread | None = None

    def start(self, what: str, *pieces: Callable[[], object]) -> None:
        """Does `pieces` in a thread, once the work before is done; `what` it is, for the log."""
        self.wait()
        self.thread = Thread(target=_attempt, args=(what, pieces), name=what)
        self.thread.start()

    def wait(self) -> None:
        """Until nothing is under way."""
        if self.thread:
            self.thread.join()
            self.thread = None


def _attempt(what: str, pieces: tuple[Callable[[], object], ...]) -> None:
    for piece in pieces:
        try:
            piece()
        except Exception:  # whatever a run's folder may hold by now, or its disk lack
            log.warning("%s failed", what, exc_info=True)


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    step: int
    """steps completed, all of them saved"""
    finished: bool
    """False when it was asked to stop before"""
    aside: Aside = field(default_factory=Aside)
    """what may still be under way: pictures, and the report"""


def train(config: Config, run: RunDir, stop: StopRequest, device: torch.device, heart: Heartbeat) -> Outcome:
    """Trains from the newest checkpoint to config.train.steps, or until a rank is asked to stop.

    Every rank calls it. Raises UserError when the run cannot go on.
    """
    with ExitStack() as ends:  # a bar that is left open would share its line with the error
        return _train(config, run, stop, device, heart, ends)


def _train(
    config: Config, run: RunDir, stop: StopRequest, device: torch.device, heart: Heartbeat, ends: ExitStack
) -> Outcome:
    trainer = Trainer(config, run, device)
    step = trainer.resume()
    process_group.barrier()  # one may have had more shards to verify; the first step's collectives do not wait so long
    journal = MetricLogger(run, step, config.train.steps) if process_group.is_main_process() else None
    ends.callback(lambda: trainer.stream.close())
    ends.callback(lambda: journal.close() if journal else None)
    watch = Stopwatch(device)
    stopping, saved = False, step
    if trainer.unscored(step):  # the life before ended between its checkpoint and this
        with heart.between(step, "score"):
            trainer.score(step)
    while step < config.train.steps and not stopping:
        with watch.phase("step"):
            with watch.phase("data"):
                batch = trainer.batch()
                data = trainer.learner.data(batch.images, step)
            with watch.phase("sample"):
                particles = trainer.learner.sample(step, data)
            with watch.phase("energy"):
                metrics = trainer.learner.learn_energy(data, particles, step)
            with watch.phase("upsampler"):
                metrics |= trainer.learner.learn_upsamplers(particles, step)
            metrics |= trainer.learner.chain_metrics(particles) | trainer.data_metrics(batch, data)
            values, stopping = trainer.agree(metrics | trainer.state.norms(), stop)
            verdict = trainer.check(step + 1, values)
            if verdict.health == guard.DIVERGED:
                if journal:
                    journal.close()
                with heart.starting_over():
                    step = saved = trainer.roll_back(step + 1, verdict, values)
                    process_group.barrier()
                journal = journal and MetricLogger(run, step, config.train.steps)
                continue
            trainer.learner.average(step, particles)
        step += 1
        heart.beat(step, own_s=watch.seconds["seconds/data"] + watch.seconds["seconds/sample"])
        if trainer.fit_monitor and _due(step, config.log.r2_every, config.train.steps):
            values |= trainer.fit_monitor.measure(trainer.learner)
        if journal:
            journal.tick(values)
            if _due(step, config.log.every, config.train.steps):
                journal.write(step, values | trainer.speed(watch), verdict.line())
        if _due(step, config.log.samples_every, config.train.steps):
            with heart.between(step, "picture"):
                if process_group.is_main_process():
                    trainer.picture(step, batch.images)
                process_group.barrier()
        scored = trainer.scored(step) and not stopping  # there may be seconds left
        if stopping or scored or trainer.checkpoints.due(step, config.train.steps):
            with heart.between(step, "save"):
                trainer.save(step)
            saved = step
        if scored:
            with heart.between(step, "score"):
                trainer.score(step)
    return Outcome(saved, step >= config.train.steps, trainer.aside)


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


def _pictures(config: DataConfig, size: int, most: int) -> Iterator[Tensor]:
    """Training pictures, uint8 [n, c, size, size] a few at a time, of a mixture by its weights."""
    shares = config.folders()
    counts = {
        folder: max(LEAST, round(most * share / sum(shares.values()))) for folder, share in shares.items()
    }
    for folder, count in counts.items():
        yield from batches(folder, size, count, config.crop, config)


def refresh_report(run: RunDir) -> None:
    """Refreshes report.html, which no run shall fail for."""
    _attempt("refreshing report.html", (lambda: report.write(run),))


class Trainer:
    """The parts of a run that the loop moves."""

    def __init__(self, config: Config, run: RunDir, device: torch.device) -> None:
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.config, self.run, self.device = config, run, device
        self.lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
        self.aside = Aside()
        self.checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
        self.scorer = Scorer(config, run, device) if config.evaluation.every else None
        wanted = config.model.flow.objective == "transport" and config.log.r2_every
        self.fit_monitor = FitMonitor(config) if wanted else None
        self.build()

    def build(self) -> None:
        """Networks, engines and chains, as at step 0."""
        self.learner = Learner(self.config, self.lanes, self.device)
        self.state = State(self.config, self.lanes, self.learner, self.device)

    def resume(self) -> int:
        """Restores the newest whole checkpoint and opens the data there; returns the steps completed."""
        every = self.config.checkpoint.keep_every
        attempt = process_group.broadcast_from_main(
            guard.settled(self.run, every) if process_group.is_main_process() else 0
        )
        folder = self.checkpoints.newest()
        facts: dict[str, Any] = checkpoint.meta(folder) if folder else {"step": 0}
        step = int(facts["step"])
        if process_group.is_main_process():
            forget_after(self.run.evaluations, step)
        self.replaced = int(facts.get("replaced", 0))
        self.history = guard.History(**facts.get("guard", {}))
        self.learner.attempt = max(attempt, int(facts.get("attempt", 0)))
        config = self.config
        self.stream = stream.build(
            config.data, self.lanes, config.seed, config.model.grids[-1], step, pin=self.device.type == "cuda"
        )
        for data in self.stream.folders:  # the launcher looks at local ones only
            refuse_smaller(data.url, data.manifest, config.model.grids, config.data)
        if folder:
            self.state.restore(folder, facts, self.stream.hash)
            log.info("resumed from %s", folder)
        elif config.model.upsampler.base == "fitted":
            self.fit()
        return step

    def fit(self) -> None:
        """Fits the up-samplers' linear maps to the training pictures; rank 0 does it for all."""
        learner, model, data = self.learner, self.config.model, self.config.data
        exact = learner.ema_upsamplers.module  # float32, whatever the engine's precision
        if process_group.is_main_process():
            parts = _pictures(data, model.grids[-1], model.upsampler.fit_images)
            fitted.fit(exact, parts, model.grids, mirrored=data.flip)
        learner.adopt(process_group.broadcast_from_main({name: x.cpu() for name, x in exact.named_buffers()}))

    def save(self, step: int) -> None:
        """Commits a checkpoint of this step."""
        judged = {"health": guard.health(self.history), "guard": asdict(self.history)}
        facts = {**self.state.facts(self.stream.hash), "replaced": self.replaced, **judged}
        facts["attempt"] = self.learner.attempt
        self.checkpoints.save(step, self.state.write, facts)

    def batch(self) -> stream.Batch:
        """This rank's images of the next step; images that stand in for undecodable ones are named."""
        batch = next(self.stream)
        for fault in batch.faults:
            log.warning("sample %s of %s was replaced: %s", fault.sample, fault.shard, fault.reason)
        return batch

    def data_metrics(self, batch: stream.Batch, data: list[Tensor]) -> Metrics:
        """Share of the batch's images that stand in for undecodable ones; of each grid's pixels, at or beyond -1
        or 1."""
        replaced = torch.tensor(len(batch.faults) / len(batch.ids), device=self.device)
        levels = zip(self.learner.grids, data, strict=True)
        saturation = {
            f"data_saturation/{grid.size}": (level.abs() >= 1).float().mean() for grid, level in levels
        }
        return {"replaced_share": replaced, **saturation}

    def agree(self, metrics: Metrics, stop: StopRequest) -> tuple[dict[str, float], bool]:
        """The global batch's metrics, and whether any rank was asked to stop: one all-reduce for both."""
        wish = torch.tensor(float(stop.wanted), device=self.device)
        local = [value.reshape(()).double() for value in (*metrics.values(), wish)]
        *values, wishes = process_group.mean(torch.stack(local)).tolist()
        return dict(zip(metrics, values, strict=True)), wishes > 0

    def check(self, step: int, values: dict[str, float]) -> Verdict:
        """What the step's values say of the run. Raises UserError when it met too many bad images or, without a
        guard, left a value that is not finite."""
        self.replaced += round(values["replaced_share"] * self.config.train.batch)
        stream.check_share(self.replaced, step * self.config.train.batch, self.config.data)
        if self.config.guard.enabled:
            self.history, verdict = guard.judge(self.config.guard, self.history, values)
            return verdict
        broken = [name for name, value in values.items() if not isfinite(value)]
        if broken:
            raise UserError(
                f"training diverged at step {step} ({', '.join(broken)}); the last checkpoint is whole; "
                "lower train.energy.lr or model.chain.step_size"
            )
        return Verdict("unwatched")

    def roll_back(self, step: int, verdict: Verdict, values: dict[str, float]) -> int:
        """Notes that the run diverged at `step`, then does what a new process would: it goes on from the last
        healthy checkpoint, or the initial weights. Returns the step. Raises UserError after too many times."""
        self.aside.wait()  # the data's new workers are forked, with which threads do not mix
        self.stream.close()
        told = self.config.guard, self.run, step, self.learner.attempt, verdict, values
        record = process_group.broadcast_from_main(
            guard.note(*told) if process_group.is_main_process() else None
        )
        if record["gave_up"]:
            raise guard.give_up_error(self.run, record, self.config.guard)
        log.warning("step %d diverged (%s); going back to step %d", *guard.summary(record))
        self.learner.close()
        del self.learner, self.state
        gc.collect()  # networks and optimizers of two learners might not fit
        self.build()
        return self.resume()

    def speed(self, watch: Stopwatch) -> dict[str, float]:
        """Seconds per phase and images per second over all ranks since the last line, and memory of this rank."""
        seconds = watch.means()
        rate = self.config.train.batch / seconds["seconds/step"]
        return {**seconds, "images_per_second": rate, **memory(self.device)}

    def sampler(self) -> Sampler:
        """Of the averaged weights as they are now."""
        return Sampler(self.config, self.learner.ema_energies.module, self.learner.ema_upsamplers.module)

    def scored(self, step: int) -> bool:
        """Whether samples are measured after step number `step`."""
        every = self.config.evaluation.every
        return every > 0 and _due(step, every, self.config.train.steps)

    def unscored(self, step: int) -> bool:
        """Whether samples of the checkpoint that the run goes on from should have been measured and were not."""
        return (
            self.scored(step)
            and step > 0
            and not process_group.broadcast_from_main(has_step(self.run.evaluations, step))
        )

    def score(self, step: int) -> None:
        """Measures fresh samples against the training pictures, and refreshes the report."""
        assert self.scorer is not None
        self.scorer.score(self.sampler(), step)
        if process_group.is_main_process():
            self.aside.start("report.html", lambda: report.write(self.run))
        process_group.barrier()  # rank 0 measures alone

    def picture(self, step: int, images: Tensor) -> None:
        """Writes samples/step_N.png: data above, then start and refined per grid from the same z every time, and
        persistent chains where there are any. Meanwhile training goes on: the files, and the report, are written aside.
        """
        count, sampler = self.config.log.samples, self.sampler()
        particles = sampler.draw(0, count, self.config.seed)
        rows = [("data", images[:count].float() / 127.5 - 1)]
        for grid, start, end in zip(sampler.grids, particles.starts, particles.ends, strict=True):
            rows += [(f"{grid.size} px start", start[:count]), (f"{grid.size} px refined", end[:count])]
        if buffer := self.learner.replay_buffer:
            rows += [("replay buffer", buffer.chains.flatten(0, 1)[:count])]
        chains = ", ".join(str(grid.steps) for grid in sampler.grids)
        title = f"{self.config.run}, step {step}, averaged weights, Langevin steps per grid: {chains}"
        page = image_grid.labelled(title, rows, side=max(64, self.learner.grids[-1].size))
        finest, folder, settings = rows[2 * len(sampler.grids)][1], self.run.samples, self.config.log
        width = max(sample_images.WIDTH // len(finest) - 1, 8)
        row = image_grid.row_of(finest, min(width, max(64, finest.shape[-1])))
        self.aside.start(
            "the picture",
            lambda: sample_images.keep(page, row, folder / f"step_{step:06d}.png", step),
            lambda: sample_images.prune(folder, settings.samples_kept, settings.samples_every),
            lambda: report.write(self.run),
        )
