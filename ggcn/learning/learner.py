"""A learning iteration in three phases: sample, learn the energies, learn the up-samplers.

Both networks learn from the same particles: the energies from chain ends against data, the up-samplers from chain
starts against chain ends.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ggcn import engine as engines
from ggcn.config.grids import grids
from ggcn.config.schema import Config, OptimizerConfig
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Key, Lanes, generator
from ggcn.engine.base import Engine
from ggcn.engine.schedule import learning_rate
from ggcn.learning.augmentation import draw_augmentation
from ggcn.learning.ema import Ema
from ggcn.learning.objectives import ENERGY_TERMS, AmortizationObjective, EnergyObjective
from ggcn.learning.transport import Pairs, TransportObjective, assignment, couple
from ggcn.models import Energies, Upsamplers, build
from ggcn.models.pyramid import pyramid
from ggcn.sampling.draw import Particles, draw, in_micro_batches, initial_noise
from ggcn.sampling.noise import Noise
from ggcn.sampling.replay_buffer import ReplayBuffer

Metrics = dict[str, Tensor]
"""Named scalars, each a mean over this rank's samples, so that the mean over ranks is that of the global batch."""


class Learner:
    """Networks, engines, averaged weights and replay buffer of a run, and the phases that change them."""

    def __init__(
        self,
        config: Config,
        lanes: Lanes,
        device: torch.device,
        networks: tuple[Energies, Upsamplers] | None = None,
    ) -> None:
        """networks: to use in place of the config's, for densities that are not of images."""
        self.config, self.lanes, self.device = config, lanes, device
        self.attempt = 0  # number of rollbacks so far; each one changes all random streams
        self.augmentation = config.train.augmentation.probability  # of pairs; may be adapted while training
        self.grids = grids(config.model)
        energies, upsamplers = networks or build(config)
        self.energies, self.upsamplers = energies.to(device), upsamplers.to(device)
        train = config.train
        self.ema_energies = Ema(self.energies, train.ema if train.ema_energies else 0.0)
        self.ema_upsamplers = Ema(self.upsamplers, train.ema)
        self.transport = config.model.flow.objective == "transport"
        self.energy_objective = self._energy_objective()
        self.energy_engine = self._engine(self.energy_objective, train.energy)
        self.amortization_engine = (
            self._engine(AmortizationObjective(self.upsamplers), train.upsampler)
            if self.upsamplers.learned
            else None
        )
        self.replay_buffer: ReplayBuffer | None = None
        if config.model.chain_init == "replay_buffer":
            self.replay_buffer = ReplayBuffer(config.model, lanes, config.seed, self.energies.shape, device)

    def _engine(self, objective: nn.Module, optimizer: OptimizerConfig) -> Engine:
        engine, accumulation = self.config.engine, self.config.train.accumulation
        return engines.build(objective, optimizer, engine, self.lanes.samples, accumulation)

    def _energy_objective(self) -> nn.Module:
        flow, width = self.config.model.flow, self.lanes.width
        if self.transport:
            return TransportObjective(self.energies, flow)
        l2 = self.config.train.energy_l2
        return EnergyObjective(self.energies, self.grids, flow.jko_points, l2, flow.jko_fraction, width)

    def load_linear_maps(self, buffers: dict[str, Tensor]) -> None:
        """Loads the buffers of the up-samplers, fitted once and not learned, into the networks and their averages."""
        for module in (self.upsamplers, self.ema_upsamplers.module):
            module.load_state_dict(buffers, strict=False)

    def keys(self, step: int, purpose: str) -> Sequence[tuple[Key, ...]]:
        """One random stream per owned lane, for one purpose of one step."""
        attempt = ("attempt", self.attempt) if self.attempt else ()
        return self.lanes.keys(self.config.seed, purpose, *attempt, "step", step)

    def prepare_data(self, images: Tensor, step: int) -> list[Tensor]:
        """uint8 images [n, c, h, h] -> for every grid noisy images [n, c, size, size], float32 in about [-1, 1]."""
        pixels = images.to(self.device, non_blocking=True).float() / 127.5 - 1
        noise = Noise(self.keys(step, "data noise"), self.device)
        levels = pyramid(pixels, self.config.model.grids)
        return [level + self.config.train.data_noise * noise.normal(*level.shape) for level in levels]

    def sample(self, step: int, data: list[Tensor]) -> Particles | None:
        """Phase 1: runs the chains, grid by grid, from z ~ N(0, I), the replay buffer or the data's mean colours.
        None in a step that needs no chain."""
        if not self.needs_chains(step):
            return None
        if self.replay_buffer is None:
            return self._draw(step, self._coarsest_input(step, data[0]))
        indices, states = self.replay_buffer.take(self.keys(step, "bank"))
        particles = self._draw(step, states)
        self.replay_buffer.put(indices, particles.ends[0])
        return particles

    def needs_chains(self, step: int) -> bool:
        """Whether a step runs chains: every one but those of the transport phase between multiples of chain.every."""
        if not self.transport or self.is_contrastive(step):
            return True
        return (step + 1) % self.config.model.chain.every == 0

    def is_contrastive(self, step: int) -> bool:
        """Whether a step of the transport objective also compares data with chain ends."""
        begin = self.config.model.flow.contrastive_from
        return self.transport and begin is not None and step >= begin

    def _coarsest_input(self, step: int, coarsest: Tensor) -> Tensor:
        """The input of the coarsest grid's up-sampler where there is no replay buffer; `coarsest`: its data."""
        model = self.config.model
        if model.chain_init == "data":
            return coarsest.mean((2, 3), keepdim=True)
        return initial_noise(
            model, self.keys(step, "hidden"), self.lanes.width, self.energies.shape, self.device
        )

    def _draw(self, step: int, inputs: Tensor) -> Particles:
        """Chains from `inputs`. Where only the up-samplers learn from them, of the averaged energies: those that
        samples are drawn with, and a steady target."""
        noise = Noise(self.keys(step, "chain"), self.device)
        hidden = self.config.model.hidden_chain
        averaged = self.transport and not self.is_contrastive(step)
        energies = self.ema_energies.module if averaged else self.energies
        advance = partial(draw, energies, self.upsamplers, self.grids, hidden)
        return in_micro_batches(advance, inputs, noise, self.config.model.chain.micro_batch)

    def learn_energy(self, data: list[Tensor], particles: Particles | None, step: int) -> Metrics:
        """Phase 2: the transport regression, or data against chain ends plus the JKO term, in one backward pass for all
        grids."""
        lr = learning_rate(self.config.train.energy, step)
        if self.transport:
            return self._learn_transport(data, particles, step, lr)
        assert particles is not None
        loss, terms, norm = self.energy_engine.step(lr, data, particles.ends, self._segment_times(step))
        named = self._per_grid(dict(zip(ENERGY_TERMS, terms.T, strict=True)))
        return {**named, "energy_loss": loss, "energy_gradient_norm": norm}

    def _learn_transport(
        self, data: list[Tensor], particles: Particles | None, step: int, lr: float
    ) -> Metrics:
        pairs = self.pairs(step, data)
        costs = tuple(process_group.all_reduce_mean(pairs.costs()).tolist())
        compared = (data, particles.ends) if particles and self.is_contrastive(step) else ()
        loss, terms, norm = self.energy_engine.step(
            lr, pairs.starts, pairs.data, pairs.times, costs, *compared
        )
        names = ("transport_error", "transport_target", "energy_gap")
        named = self._per_grid(dict(zip(names, terms.T, strict=False)))
        probability = torch.tensor(self.augmentation, device=self.device)
        return {**named, "energy_loss": loss, "energy_gradient_norm": norm, "augmentation": probability}

    def pairs(self, step: int, data: list[Tensor]) -> Pairs:
        """Chain starts coupled with this step's data, and the times at which the regression is evaluated."""
        noise = Noise(self.keys(step, "start noise"), self.device)
        shape = (len(self.grids), self.lanes.width)
        times = np.concatenate([generator(*key).random(shape) for key in self.keys(step, "segments")], 1)
        inputs = self._coarsest_input(step, data[0])
        pairs = couple(self.upsamplers, inputs, data, self.config.model.flow.start_noise, noise, times)
        pairs.data[0] = self._assign(pairs.starts[0], data[0])
        if not self.augmentation:
            return pairs
        keys = self.keys(step, "augmentation")
        return pairs.augmented(draw_augmentation(keys, self.lanes.width, self.augmentation, self.device))

    def _assign(self, starts: Tensor, data: Tensor) -> Tensor:
        """The datum of the global batch that each of this rank's starts is paired with. Rank 0 computes the assignment
        for all ranks, so that it does not depend on float differences between them."""
        all_starts, all_data = process_group.all_gather_cat(starts), process_group.all_gather_cat(data)
        width = self.lanes.width
        targets = (
            assignment(all_starts.cpu(), all_data.cpu(), width) if process_group.is_main_process() else None
        )
        first = self.lanes.rank * len(starts)
        own = process_group.broadcast_from_main(targets)[first : first + len(starts)]
        return all_data[own.to(self.device)]

    def learn_upsamplers(self, particles: Particles | None, step: int) -> Metrics:
        """Phase 3, amortization: every up-sampler with parameters regresses from its input, with the chain's noise, to
        the chain ends. Where chains start from the linear maps the loss is relative to how far they moved, and the
        share of that which the up-sampler has absorbed is a metric."""
        if self.amortization_engine is None or particles is None:
            return {}
        lr = learning_rate(self.config.train.upsampler, step)
        batch = particles.inputs, particles.starts, particles.ends
        moved: list[float] | None = None
        if self.config.model.chain.init_from == "base":
            moved = process_group.all_reduce_mean(particles.mean_squared_displacements()).tolist()
        _, errors, norm = self.amortization_engine.step(lr, *batch, moved and tuple(moved))
        named = {}
        for number, error in zip(self.upsamplers.learned, errors, strict=True):
            size = self.grids[number].size
            named[f"amortization/{size}"] = error
            if moved:
                named[f"absorbed/{size}"] = 1 - error / moved[number]
        return {**named, "upsampler_gradient_norm": norm}

    def update_averages(self, step: int, particles: Particles | None) -> None:
        """Updates the averaged weights, and the distribution of mean colours where chains start from them."""
        self.ema_energies.update(step, self.energy_engine.weights())
        self.ema_upsamplers.update(
            step, self.amortization_engine.weights() if self.amortization_engine else []
        )
        if particles and (colours := self.ema_upsamplers.module.colours):
            colours.observe(
                process_group.all_reduce_mean(colours.moments(particles.inputs[0])), 1 / (step + 1)
            )

    def close(self) -> None:
        """Closes the engines; nothing else may be called after it."""
        for engine in (self.energy_engine, self.amortization_engine):
            if engine:
                engine.close()

    def chain_metrics(self, particles: Particles | None) -> Metrics:
        """What the chains did, per grid (see ChainReport); nothing in a step without chains."""
        if particles is None:
            return {}
        names = ["displacement", "relative_displacement", "gradient", "saturation"]
        if not all(grid.temperature for grid in self.grids):
            names.remove("relative_displacement")  # there is no noise to be relative to
        columns = {
            name: torch.stack([getattr(report, name).mean() for report in particles.reports])
            for name in names
        }
        return self._per_grid(columns)

    def _segment_times(self, step: int) -> Tensor:
        times = [generator(*key).random(self.lanes.width) for key in self.keys(step, "segments")]
        return torch.tensor(np.concatenate(times), dtype=torch.float32, device=self.device)

    def _per_grid(self, columns: dict[str, Tensor]) -> Metrics:
        return {
            f"{name}/{grid.size}": value
            for name, column in columns.items()
            for grid, value in zip(self.grids, column, strict=True)
        }
