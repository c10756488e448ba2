"""Pictures of a trained model, from fresh chains and averaged weights, and the energies it gives to pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ggcn.evaluation.images import Pixels, at_once, to_bytes, to_floats
from ggcn.sampling.sampler import Sampler, check_finite


@dataclass(frozen=True)
class Drawn:
    """Samples of the finest grid."""

    starts: Tensor
    """uint8 [n, 3, size, size]: the chains' starts, before any Langevin step on this grid"""
    ends: Tensor
    """uint8 [n, 3, size, size]: the chains' ends, which are the samples"""
    energies: Tensor
    """of the ends before they became bytes, float32 [n]"""


def drawn(sampler: Sampler, count: int, seed: int, batch: int = 64) -> Drawn:
    """Samples number 0 to count - 1 of a seed, about `batch` chains at once, all in memory.

    Raises UserError when a chain did not stay finite.
    """
    found = [(part.starts, part.ends, part.energies) for part in parts(sampler, count, seed, batch)]
    return Drawn(*(torch.cat(column) for column in zip(*found, strict=True)))


def parts(sampler: Sampler, count: int, seed: int, batch: int = 64) -> Iterator[Drawn]:
    """What `drawn` gives, `batch` samples at a time. Raises as `drawn`."""
    batch = max(batch // sampler.lane_width, 1) * sampler.lane_width
    with tqdm(total=count, unit="picture", desc="samples", disable=None, leave=False) as bar:
        for first in range(0, count, batch):
            wanted = min(batch, count - first)
            yield _part(sampler, first, wanted, seed)
            bar.update(wanted)


def _part(sampler: Sampler, first: int, wanted: int, seed: int) -> Drawn:
    particles = sampler.draw(first, wanted, seed)
    starts, ends = particles.starts[-1][:wanted], particles.ends[-1][:wanted]
    check_finite(ends, sampler)
    return Drawn(to_bytes(starts), to_bytes(ends), _energy(sampler, ends))


def energies(sampler: Sampler, pixels: Pixels, batch: int = 256) -> Tensor:
    """Energies on the finest grid of uint8 pictures [n, 3, size, size], float32 [n]; low is likely."""
    several = pixels.split(min(batch, at_once(pixels)))
    return torch.cat([_energy(sampler, to_floats(part.to(sampler.device))) for part in several])


def _energy(sampler: Sampler, images: Tensor) -> Tensor:
    with torch.no_grad():
        return sampler.energies.energy(len(sampler.grids) - 1, images, "fp32").cpu()


def settings(sampler: Sampler, seed: int) -> dict[str, Any]:
    """What a number about samples depends on besides the data: checkpoint, seed and chains."""
    grids = sampler.grids
    chains = [
        {"grid": g.size, "steps": g.steps, "step_size": g.step_size, "temperature": g.temperature}
        for g in grids
    ]
    told = {"checkpoint": str(sampler.folder), "step": step(sampler), "weights": "averaged", "seed": seed}
    told |= {"model": sampler.config.model.name, "start": sampler.config.model.chain_init, "chains": chains}
    if sampler.config.model.hidden_chain.steps:
        told["hidden_chain_steps"] = sampler.config.model.hidden_chain.steps
    return told


def step(sampler: Sampler) -> int:
    """The training step whose weights a sampler has."""
    return int(sampler.facts["step"])


def data_hash(sampler: Sampler) -> str | None:
    """The hash of the data that a checkpoint was trained on; None for an exported file, which does not say."""
    return sampler.facts.get("data")
