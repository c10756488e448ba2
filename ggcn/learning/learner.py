"""A learning iteration in three phases: sample, learn the energy, learn the up-sampler.

Symmetrical: both learners see the same particles, the energy as chain ends against data, the up-sampler as
chain starts against chain ends.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ggcn import engine as engines
from ggcn.config.grids import grids
from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Key, Lanes, generator
from ggcn.engine.schedule import rate
from ggcn.learning.ema import Ema
from ggcn.learning.objectives import ENERGY_TERMS, AmortizationObjective, EnergyObjective
from ggcn.learning.transport import Pairs, TransportObjective, assignment, couple
from ggcn.models import Energies, Upsamplers, build
from ggcn.models.pyramid import pyramid
from ggcn.sampling.draw import Particles, draw, fresh, in_parts
from ggcn.sampling.noise import Noise
from ggcn.sampling.replay_buffer import ReplayBuffer

Metrics = dict[str, Tensor]
"""Named scalars, each a mean over this rank's samples, so that the mean over ranks is that of the batch."""


class Learner:
    """Networks, engines and averaged weights of a run, and the phases that change them."""

    def __init__(
        self,
        config: Config,
        lanes: Lanes,
        device: torch.device,
        networks: tuple[Energies, Upsamplers] | None = None,
    ) -> None:
        """networks: others than the config's, for densities that are no images."""
        self.config, self.lanes, self.device = config, lanes, device
        self.attempt = 0  # roll-backs so far; each gives all draws new random streams
        self.grids = grids(config.model)
        energies, upsamplers = networks or build(config)
        self.energies, self.upsamplers = energies.to(device), upsamplers.to(device)
        train = config.train
        self.ema_energies = Ema(self.energies, train.ema if train.ema_energies else 0.0)
        self.ema_upsamplers = Ema(self.upsamplers, train.ema)
        self.transport = config.model.flow.objective == "transport"
        self.energy_objective = self._objective()
        self.energy_engine = engines.build(
            self.energy_objective,
            train.energy,
            config.engine,
            lanes.samples,
            train.accumulation,
        )
        self.amortization_engine = (
            engines.build(
                AmortizationObjective(self.upsamplers),
                train.upsampler,
                config.engine,
                lanes.samples,
                train.accumulation,
            )
            if self.upsamplers.learned
            else None
        )
        self.replay_buffer: ReplayBuffer | None = None
        if config.model.chain_init == "replay_buffer":
            self.replay_buffer = ReplayBuffer(config.model, lanes, config.seed, self.energies.shape, device)

    def _objective(self) -> nn.Module:
        flow, width = self.config.model.flow, self.lanes.width
        if self.transport:
            return TransportObjective(self.energies, flow.decay_from)
        l2 = self.config.train.energy_l2
        return EnergyObjective(self.energies, self.grids, flow.jko_points, l2, flow.jko_fraction, width)

    def adopt(self, buffers: dict[str, Tensor]) -> None:
        """Takes over what is fitted and not learned, by name, in the up-samplers and their averages."""
        for module in (self.upsamplers, self.ema_upsamplers.module):
            module.load_state_dict(buffers, strict=False)

    def keys(self, step: int, purpose: str) -> Sequence[tuple[Key, ...]]:
        """One random stream per owned lane, for one purpose of one step."""
        again = ("attempt", self.attempt) if self.attempt else ()
        return self.lanes.keys(self.config.seed, purpose, *again, "step", step)

    def data(self, images: Tensor, step: int) -> list[Tensor]:
        """uint8 images [n, c, h, h] -> noisy float images in about [-1, 1] for every grid."""
        pixels = images.to(self.device, non_blocking=True).float() / 127.5 - 1
        noise = Noise(self.keys(step, "data noise"), self.device)
        levels = pyramid(pixels, self.config.model.grids)
        return [level + self.config.train.data_noise * noise.normal(*level.shape) for level in levels]

    def sample(self, step: int, data: list[Tensor]) -> Particles | None:
        """Phase 1: z ~ N(0, I), persistent chains or the data's mean colours, then up-sampling and chains, grid
        by grid. None in a step that needs no chain."""
        if self.transport and (step + 1) % self.config.model.chain.every:
            return None
        if self.replay_buffer is None:
            return self._draw(step, self._source(step, data[0]))
        taken, source = self.replay_buffer.take(self.keys(step, "bank"))
        particles = self._draw(step, source)
        self.replay_buffer.put(taken, particles.ends[0])
        return particles

    def _source(self, step: int, coarsest: Tensor) -> Tensor:
        model = self.config.model
        if model.chain_init == "data":
            return coarsest.mean((2, 3), keepdim=True)
        return fresh(model, self.keys(step, "hidden"), self.lanes.width, self.energies.shape, self.device)

    def _draw(self, step: int, source: Tensor) -> Particles:
        noise = Noise(self.keys(step, "chain"), self.device)
        hidden = self.config.model.hidden_chain
        advance = partial(draw, self.energies, self.upsamplers, self.grids, hidden)
        return in_parts(advance, source, noise, self.config.model.chain.micro_batch)

    def learn_energy(self, data: list[Tensor], particles: Particles | None, step: int) -> Metrics:
        """Phase 2: the transport regression, or data against chain ends plus the JKO term; one backward for all
        grids."""
        lr = rate(self.config.train.energy, step)
        if self.transport:
            return self._learn_transport(data, step, lr)
        assert particles is not None
        loss, terms, norm = self.energy_engine.step(lr, data, particles.ends, self._shares(step))
        named = self._per_grid(dict(zip(ENERGY_TERMS, terms.T, strict=True)))
        return {**named, "energy_loss": loss, "energy_gradient_norm": norm}

    def _learn_transport(self, data: list[Tensor], step: int, lr: float) -> Metrics:
        pairs = self.pairs(step, data)
        costs = tuple(process_group.mean(pairs.costs()).tolist())
        loss, terms, norm = self.energy_engine.step(lr, pairs.starts, pairs.data, pairs.times, costs)
        named = self._per_grid({"transport_error": terms[:, 0], "transport_target": terms[:, 1]})
        return {**named, "energy_loss": loss, "energy_gradient_norm": norm}

    def pairs(self, step: int, data: list[Tensor]) -> Pairs:
        """Chain starts and this step's data, coupled, and where on the way between them the regression looks."""
        noise = Noise(self.keys(step, "start noise"), self.device)
        shape = (len(self.grids), self.lanes.width)
        times = np.concatenate([generator(*key).random(shape) for key in self.keys(step, "segments")], 1)
        source = self._source(step, data[0])
        pairs = couple(self.upsamplers, source, data, self.config.model.flow.start_noise, noise, times)
        pairs.data[0] = self._assigned(pairs.starts[0], data[0])
        return pairs

    def _assigned(self, starts: Tensor, data: Tensor) -> Tensor:
        """The datum of the global batch that each of this rank's starts goes to. Rank 0 decides for all: float
        differences between ranks cannot flip a pair."""
        every_start, every_datum = process_group.concatenated(starts), process_group.concatenated(data)
        width = self.lanes.width
        chosen = (
            assignment(every_start.cpu(), every_datum.cpu(), width)
            if process_group.is_main_process()
            else None
        )
        first = self.lanes.rank * len(starts)
        mine = process_group.broadcast_from_main(chosen)[first : first + len(starts)]
        return every_datum[mine.to(self.device)]

    def learn_upsamplers(self, particles: Particles | None, step: int) -> Metrics:
        """Phase 3: every up-sampler that learns regresses from its source to where the chain went."""
        if self.amortization_engine is None or particles is None:
            return {}
        lr = rate(self.config.train.upsampler, step)
        _, errors, norm = self.amortization_engine.step(lr, particles.sources, particles.ends)
        learned = zip(self.upsamplers.learned, errors, strict=True)
        named = {f"amortization/{self.grids[number].size}": error for number, error in learned}
        return {**named, "upsampler_gradient_norm": norm}

    def average(self, step: int, particles: Particles | None) -> None:
        """Moves the averaged weights along, and the law of mean colours where chains start from them."""
        self.ema_energies.update(step, self.energy_engine.weights())
        self.ema_upsamplers.update(
            step, self.amortization_engine.weights() if self.amortization_engine else []
        )
        if particles and (colours := self.ema_upsamplers.module.colours):
            colours.observe(process_group.mean(colours.moments(particles.sources[0])), 1 / (step + 1))

    def close(self) -> None:
        """Ends the engines; nothing else may be called after it."""
        for engine in (self.energy_engine, self.amortization_engine):
            if engine:
                engine.close()

    def chain_metrics(self, particles: Particles | None) -> Metrics:
        """What the chains did, per grid (see ChainReport); nothing in a step without chains."""
        if particles is None:
            return {}
        names = ["displacement", "relative_displacement", "gradient", "saturation"]
        if not all(grid.temperature for grid in self.grids):
            names.remove("relative_displacement")  # there is no noise that it could be relative to
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
