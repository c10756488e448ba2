"""Persistent chains: state of the lanes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ggcn import files, progress
from ggcn.config.schema import ModelConfig
from ggcn.distributed.lanes import Key, Lanes, generator
from ggcn.sampling.noise import Noise

Taken = tuple[Tensor, Tensor]
"""lane slots and chain numbers, int64 [samples] each"""


class ReplayBuffer:
    """The owned lanes' chains at the coarsest grid, and how often each was advanced since it began.

    Every choice is keyed by (seed, step, lane), and a lane's chains are saved under the lane's number: so a
    run may be resumed by any number of ranks.
    """

    def __init__(
        self, model: ModelConfig, lanes: Lanes, seed: int, shape: Sequence[int], device: torch.device
    ) -> None:
        """shape: of one chain's state, [c, size, size]."""
        self.config, self.lanes, self.sd = model.replay_buffer, lanes, model.init_std
        noise = Noise(lanes.keys(seed, "bank"), device)
        images = noise.normal(len(lanes.owned) * self.config.chains, *shape) * self.sd
        self.chains = images.unflatten(0, (len(lanes.owned), self.config.chains))
        self.ages = torch.zeros(len(lanes.owned), self.config.chains, dtype=torch.int64)

    def take(self, keys: Sequence[tuple[Key, ...]]) -> tuple[Taken, Tensor]:
        """The lanes' width of chains each, chosen by one key per owned lane: which, and their states.

        A share of them, config.reinit_prob, starts anew from noise.
        """
        device, width = self.chains.device, self.lanes.width
        dice = [generator(*key, "take") for key in keys]
        chosen = [
            torch.from_numpy(die.bit_generator.random_raw(self.config.chains).argsort()[:width].copy())
            for die in dice
        ]
        renewed = torch.cat([torch.from_numpy(die.random(width)) for die in dice]) < self.config.reinit_prob
        taken = torch.arange(len(keys)).repeat_interleave(width), torch.cat(chosen)
        states = self.chains[taken[0].to(device), taken[1].to(device)]
        noise = Noise([(*key, "renew") for key in keys], device).normal(*states.shape) * self.sd
        self.ages[taken[0][renewed], taken[1][renewed]] = 0
        return taken, torch.where(renewed.to(device)[:, None, None, None], noise, states)

    def put(self, taken: Taken, ends: Tensor) -> None:
        """Stores where the chains that were taken ended, one step older."""
        slots, numbers = (part.to(self.chains.device) for part in taken)
        self.chains[slots, numbers] = ends
        self.ages[taken] += 1

    def save(self, folder: Path) -> None:
        """One file per owned lane; every rank calls it."""
        folder.mkdir(exist_ok=True)
        for slot, lane in enumerate(self.lanes.owned):
            state = {"chains": self.chains[slot].cpu().clone(), "ages": self.ages[slot].clone()}
            with files.streaming_write(_path(folder, lane)) as file:
                torch.save(state, file)

    def load(self, folder: Path) -> None:
        """Reads the owned lanes, whoever wrote them."""
        for slot, lane in enumerate(self.lanes.owned):
            state = torch.load(_path(folder, lane), map_location="cpu", weights_only=True)
            self.chains[slot] = state["chains"].to(self.chains.device)
            self.ages[slot] = state["ages"]
            progress.report()


def _path(folder: Path, lane: int) -> Path:
    return folder / f"lane_{lane:05d}.pt"
