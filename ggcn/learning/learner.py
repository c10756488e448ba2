"""A learning iteration in three phases: sample, learn the energy, learn the up-sampler.

Symmetrical: both learners see the same particles, the energy as chain ends against data, the up-sampler as
chain starts against chain ends.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ggcn import engine as engines
from ggcn.config import Config, OptimizerConfig, grids
from ggcn.lanes import Key, Lanes, generator
from ggcn.learning.ema import Ema
from ggcn.learning.objectives import ENERGY_TERMS, EnergyObjective, TeachingObjective
from ggcn.models import build
from ggcn.sampling.bank import Bank
from ggcn.sampling.draw import Particles, draw, fresh, pyramid
from ggcn.sampling.noise import Noise

Metrics = dict[str, Tensor]
"""Named scalars, each a mean over this rank's samples, so that the mean over ranks is that of the batch."""


class Learner:
    """Networks, engines and averaged weights of a run, and the phases that change them."""

    def __init__(self, config: Config, lanes: Lanes, device: torch.device) -> None:
        self.config, self.lanes, self.device = config, lanes, device
        self.grids = grids(config.model)
        energies, upsamplers = build(config)
        self.energies, self.upsamplers = energies.to(device), upsamplers.to(device)
        train = config.train
        self.energy_engine = engines.build(
            EnergyObjective(self.energies, self.grids, config.model.flow.particles, train.energy_l2),
            train.energy,
            config.engine,
            lanes.samples,
        )
        self.teaching_engine = (
            engines.build(TeachingObjective(self.upsamplers), train.upsampler, config.engine, lanes.samples)
            if self.upsamplers.learned
            else None
        )
        self.bank = Bank(config.model, lanes, config.seed, device) if config.model.start == "bank" else None
        self.ema_energies = Ema(self.energies, train.ema if train.ema_energies else 0.0)
        self.ema_upsamplers = Ema(self.upsamplers, train.ema)

    def keys(self, step: int, purpose: str) -> Sequence[tuple[Key, ...]]:
        """One random stream per owned lane, for one purpose of one step."""
        return self.lanes.keys(self.config.seed, purpose, "step", step)

    def data(self, images: Tensor, step: int) -> list[Tensor]:
        """uint8 images [n, c, h, h] -> noisy float images in about [-1, 1] for every grid."""
        pixels = images.to(self.device, non_blocking=True).float() / 127.5 - 1
        noise = Noise(self.keys(step, "data noise"), self.device)
        levels = pyramid(pixels, self.config.model.grids)
        return [level + self.config.train.data_noise * noise.normal(*level.shape) for level in levels]

    def sample(self, step: int) -> Particles:
        """Phase 1: z ~ N(0, I) or persistent chains, then up-sampling and chains, grid by grid."""
        noise = Noise(self.keys(step, "chain"), self.device)
        if self.bank is None:
            source = fresh(self.config.model, self.keys(step, "hidden"), self.lanes.width, self.device)
            return draw(self.energies, self.upsamplers, self.grids, source, noise)
        taken, source = self.bank.take(self.keys(step, "bank"))
        particles = draw(self.energies, self.upsamplers, self.grids, source, noise)
        self.bank.put(taken, particles.ends[0])
        return particles

    def learn_energy(self, data: list[Tensor], particles: Particles, step: int) -> Metrics:
        """Phase 2: data against chain ends, plus the JKO term; one backward for all grids."""
        loss, terms = self.energy_engine(data, particles.ends, self._shares(step))
        norm = self.energy_engine.step(loss, _rate(self.config.train.energy, step))
        return {
            **self._per_grid(dict(zip(ENERGY_TERMS, terms.T, strict=True))),
            "energy_loss": loss.detach(),
            "energy_gradient_norm": norm,
        }

    def learn_upsamplers(self, particles: Particles, step: int) -> Metrics:
        """Phase 3: every up-sampler that learns regresses from its source to where the chain went."""
        if self.teaching_engine is None:
            return {}
        loss, errors = self.teaching_engine(particles.sources, particles.ends)
        norm = self.teaching_engine.step(loss, _rate(self.config.train.upsampler, step))
        learned = zip(self.upsamplers.learned, errors, strict=True)
        named = {f"teaching/{self.grids[number].size}": error for number, error in learned}
        return {**named, "upsampler_gradient_norm": norm}

    def average(self, step: int) -> None:
        """Moves the averaged weights along."""
        self.ema_energies.update(step)
        self.ema_upsamplers.update(step)

    def chain_metrics(self, particles: Particles) -> Metrics:
        """What the chains did, per grid (see ChainReport)."""
        names = ("displacement", "relative_displacement", "gradient", "saturation")
        columns = {
            name: torch.stack([getattr(report, name).mean() for report in particles.reports])
            for name in names
        }
        return self._per_grid(columns)

    def _shares(self, step: int) -> Tensor:
        draws = [generator(*key).random(self.lanes.width) for key in self.keys(step, "segments")]
        return torch.tensor(np.concatenate(draws), dtype=torch.float32, device=self.device)

    def _per_grid(self, columns: dict[str, Tensor]) -> Metrics:
        return {
            f"{name}/{grid.size}": value
            for name, column in columns.items()
            for grid, value in zip(self.grids, column, strict=True)
        }


def _rate(optimizer: OptimizerConfig, step: int) -> float:
    """The learning rate of step number `step`, from 0."""
    return optimizer.lr * min(1.0, (step + 1) / max(optimizer.warmup, 1))
