"""The training loop."""

import gc
import logging
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from ggcn import pictures, ranks
from ggcn.config import Config
from ggcn.data import stream
from ggcn.errors import UserError
from ggcn.lanes import Lanes
from ggcn.learning.learner import Learner, Metrics
from ggcn.sampling.sampler import Sampler
from ggcn.training import checkpoint, guard
from ggcn.training.checkpoint import Checkpoints
from ggcn.training.guard import Verdict
from ggcn.training.heartbeat import Heart
from ggcn.training.metrics import Journal, Stopwatch, memory
from ggcn.training.rundir import RunDir
from ggcn.training.state import State

log = logging.getLogger(__name__)


class Wish(Protocol):
    """Somebody who may want the run to stop."""

    @property
    def wanted(self) -> bool: ...


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    step: int
    """steps completed, all of them saved"""
    finished: bool
    """False when it was asked to stop before"""


def train(config: Config, run: RunDir, stop: Wish, device: torch.device, heart: Heart) -> Outcome:
    """Trains from the newest checkpoint to config.train.steps, or until a rank is asked to stop.

    Every rank calls it. Raises UserError when the run cannot go on.
    """
    trainer = Trainer(config, run, device)
    step = trainer.resume()
    journal = Journal(run, step, config.train.steps) if ranks.is_first() else None
    watch = Stopwatch(device)
    stopping, saved = False, step
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
                step = saved = trainer.roll_back(step + 1, verdict, values)
                journal = journal and Journal(run, step, config.train.steps)
                continue
            trainer.learner.average(step, particles)
        step += 1
        heart.beat(step, own_s=watch.seconds["seconds/data"] + watch.seconds["seconds/sample"])
        if journal:
            journal.tick(values)
            if _due(step, config.log.every, config.train.steps):
                journal.write(step, values | watch.seconds | trainer.speed(watch), verdict.line())
            if _due(step, config.log.pictures_every, config.train.steps):
                trainer.picture(step, batch.images)
        if stopping or trainer.checkpoints.due(step, config.train.steps):
            with heart.saving(step):
                trainer.save(step)
            saved = step
    trainer.stream.close()
    if journal:
        journal.close()
    return Outcome(saved, step >= config.train.steps)


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


class Trainer:
    """The parts of a run that the loop moves."""

    def __init__(self, config: Config, run: RunDir, device: torch.device) -> None:
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.config, self.run, self.device = config, run, device
        self.lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
        self.checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
        self.build()

    def build(self) -> None:
        """Networks, engines and chains, as at step 0."""
        self.learner = Learner(self.config, self.lanes, self.device)
        self.state = State(self.config, self.lanes, self.learner, self.device)

    def resume(self) -> int:
        """Restores the newest whole checkpoint and opens the data there; returns the steps completed."""
        incidents = ranks.from_first(guard.settled(self.run) if ranks.is_first() else 0)
        folder = self.checkpoints.newest()
        facts: dict[str, Any] = checkpoint.meta(folder) if folder else {"step": 0}
        step = int(facts["step"])
        self.replaced = int(facts.get("replaced", 0))
        self.history = guard.History(**facts.get("guard", {}))
        self.learner.attempt = max(incidents, int(facts.get("attempt", 0)))
        config = self.config
        self.stream = stream.build(
            config.data, self.lanes, config.seed, config.model.grids[-1], step, pin=self.device.type == "cuda"
        )
        if folder:
            self.state.restore(folder, facts, self.stream.hash)
            log.info("resumed from %s", folder)
        return step

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

    def agree(self, metrics: Metrics, stop: Wish) -> tuple[dict[str, float], bool]:
        """The global batch's metrics, and whether any rank was asked to stop: one all-reduce for both."""
        wish = torch.tensor(float(stop.wanted), device=self.device)
        local = [value.reshape(()).double() for value in (*metrics.values(), wish)]
        *values, wishes = ranks.mean(torch.stack(local)).tolist()
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
        self.stream.close()
        record = guard.note(self.config.guard, self.run, step, verdict, values) if ranks.is_first() else None
        record = ranks.from_first(record)
        if record["gave_up"]:
            raise guard.surrender(self.run, record)
        log.warning("step %d diverged (%s); going back to step %d", *guard.summary(record))
        self.learner.close()
        del self.learner, self.state
        gc.collect()  # networks and optimizers of two learners might not fit
        self.build()
        return self.resume()

    def speed(self, watch: Stopwatch) -> dict[str, float]:
        """Images per second of this step over all ranks, and memory of this rank."""
        rate = self.config.train.batch / watch.seconds["seconds/step"]
        return {"images_per_second": rate, **memory(self.device)}

    def picture(self, step: int, images: Tensor) -> None:
        """Writes samples/step_N.png: data above, then start and refined per grid from the same z every time, and
        persistent chains where there are any."""
        count = self.config.log.pictures
        sampler = Sampler(self.config, self.learner.ema_energies.module, self.learner.ema_upsamplers.module)
        particles = sampler.draw(0, count, self.config.seed)
        rows = [("data", images[:count].float() / 127.5 - 1)]
        for grid, start, end in zip(sampler.grids, particles.starts, particles.ends, strict=True):
            rows += [(f"{grid.size} px start", start[:count]), (f"{grid.size} px refined", end[:count])]
        if bank := self.learner.bank:
            rows += [("bank", bank.chains.flatten(0, 1)[:count])]
        chains = ", ".join(str(grid.steps) for grid in sampler.grids)
        title = f"{self.config.run}, step {step}, averaged weights, Langevin steps per grid: {chains}"
        page = pictures.labelled(title, rows, side=max(64, self.learner.grids[-1].size))
        pictures.save(page, self.run.samples / f"step_{step:06d}.png")
