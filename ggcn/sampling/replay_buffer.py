"""Persistent chains, kept per lane."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ggcn import progress
from ggcn.config.schema import ModelConfig
from ggcn.distributed.lanes import Key, Lanes, generator
from ggcn.sampling.noise import Noise

Indices = tuple[Tensor, Tensor]
"""lane slots and chain numbers, int64 [samples] each"""


class ReplayBuffer:
    """The owned lanes' chains at the coarsest grid, and how often each was advanced since its initialization.

    Every choice is keyed by (seed, step, lane), and a lane's chains are saved under the lane's number: so a
    run may be resumed by any number of ranks.
    """

    def __init__(
        self, model: ModelConfig, lanes: Lanes, seed: int, shape: Sequence[int], device: torch.device
    ) -> None:
        """shape: of one chain's state, [c, size, size]."""
        self.config, self.lanes, self.init_std = model.replay_buffer, lanes, model.init_std
        noise = Noise(lanes.keys(seed, "bank"), device)
        images = noise.normal(len(lanes.owned) * self.config.chains, *shape) * self.init_std
        self.chains = images.unflatten(0, (len(lanes.owned), self.config.chains))
        self.ages = torch.zeros(len(lanes.owned), self.config.chains, dtype=torch.int64)

    def take(self, keys: Sequence[tuple[Key, ...]]) -> tuple[Indices, Tensor]:
        """As many random chains of every owned lane as the lane is wide, by one key per lane: their indices and states.

        Each is reinitialized from noise with probability config.reinit_prob.
        """
        device, width = self.chains.device, self.lanes.width
        generators = [generator(*key, "take") for key in keys]
        chosen = [
            torch.from_numpy(rng.bit_generator.random_raw(self.config.chains).argsort()[:width].copy())
            for rng in generators
        ]
        reinitialized = (
            torch.cat([torch.from_numpy(rng.random(width)) for rng in generators]) < self.config.reinit_prob
        )
        indices = torch.arange(len(keys)).repeat_interleave(width), torch.cat(chosen)
        states = self.chains[indices[0].to(device), indices[1].to(device)]
        noise = Noise([(*key, "renew") for key in keys], device).normal(*states.shape) * self.init_std
        self.ages[indices[0][reinitialized], indices[1][reinitialized]] = 0
        return indices, torch.where(reinitialized.to(device)[:, None, None, None], noise, states)

    def put(self, indices: Indices, ends: Tensor) -> None:
        """Stores the ends [samples, ...] of the chains that `take` returned, and increases their ages."""
        slots, numbers = (part.to(self.chains.device) for part in indices)
        self.chains[slots, numbers] = ends
        self.ages[indices] += 1

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{file name: content} of the owned lanes, a file each, copied to host memory; `load` reads them."""
        return {
            _file_name(lane): {
                "chains": self.chains[slot].to("cpu", copy=True),
                "ages": self.ages[slot].clone(),
            }
            for slot, lane in enumerate(self.lanes.owned)
        }

    def load(self, folder: Path) -> None:
        """Reads the owned lanes, whichever ranks wrote them."""
        for slot, lane in enumerate(self.lanes.owned):
            state = torch.load(folder / _file_name(lane), map_location="cpu", weights_only=True)
            self.chains[slot] = state["chains"].to(self.chains.device)
            self.ages[slot] = state["ages"]
            progress.report()


def _file_name(lane: int) -> str:
    return f"lane_{lane:05d}.pt"
