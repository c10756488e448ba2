"""Samples of a trained model, from new chains and averaged weights, and energies of images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ggcn.evaluation.images import ImageArray, chunk_size, to_bytes, to_floats
from ggcn.run import display
from ggcn.sampling.sampler import Sampler, check_finite


@dataclass(frozen=True)
class Samples:
    """Samples on the finest grid."""

    starts: Tensor
    """uint8 [n, 3, size, size]: the chains' starts, before any Langevin step on this grid"""
    ends: Tensor
    """uint8 [n, 3, size, size]: the chains' ends, which are the samples"""
    energies: Tensor
    """of the ends before they were rounded to bytes, float32 [n]"""


def draw_samples(sampler: Sampler, count: int, seed: int, batch: int = 64) -> Samples:
    """Samples number 0 to count - 1 of a seed, about `batch` chains at once, all in memory.

    Raises UserError when a chain did not stay finite.
    """
    columns = [
        (part.starts, part.ends, part.energies) for part in sample_batches(sampler, count, seed, batch)
    ]
    return Samples(*(torch.cat(column) for column in zip(*columns, strict=True)))


def sample_batches(sampler: Sampler, count: int, seed: int, batch: int = 64) -> Iterator[Samples]:
    """What `draw_samples` returns, `batch` samples at a time. Raises as `draw_samples`."""
    batch = max(batch // sampler.lane_width, 1) * sampler.lane_width
    with display.bar(count, "image", "samples") as bar:
        for first in range(0, count, batch):
            size = min(batch, count - first)
            yield _sample_batch(sampler, first, size, seed)
            bar.update(size)


def _sample_batch(sampler: Sampler, first: int, size: int, seed: int) -> Samples:
    particles = sampler.draw(first, size, seed)
    starts, ends = particles.starts[-1][:size], particles.ends[-1][:size]
    check_finite(ends, sampler)
    return Samples(to_bytes(starts), to_bytes(ends), _finest_energy(sampler, ends))


def energies(sampler: Sampler, pixels: ImageArray, batch: int = 256) -> Tensor:
    """Energies on the finest grid of uint8 images [n, 3, size, size], float32 [n]; low is likely."""
    batches = pixels.split(min(batch, chunk_size(pixels)))
    return torch.cat([_finest_energy(sampler, to_floats(part.to(sampler.device))) for part in batches])


def _finest_energy(sampler: Sampler, images: Tensor) -> Tensor:
    with torch.no_grad():
        return sampler.energies.energy(len(sampler.grids) - 1, images, "fp32").cpu()


def sampling_settings(sampler: Sampler, seed: int) -> dict[str, Any]:
    """What results about samples depend on besides the data: checkpoint, seed and chains."""
    grids = sampler.grids
    chains = [
        {
            "grid": g.size,
            "steps": g.steps,
            "time": g.steps * g.step_size,
            "step_size": g.step_size,
            "temperature": g.temperature,
            "noise": g.start_noise,
        }
        for g in grids
    ]
    result = {"checkpoint": str(sampler.folder), "step": step(sampler), "weights": "averaged", "seed": seed}
    result |= {"model": sampler.config.model.name, "start": sampler.config.model.chain_init, "chains": chains}
    if sampler.settings.mode:
        result["mode"] = sampler.settings.mode
    if sampler.config.model.hidden_chain.steps:
        result["hidden_chain_steps"] = sampler.config.model.hidden_chain.steps
    return result


def step(sampler: Sampler) -> int:
    """The training step whose weights a sampler has."""
    return int(sampler.metadata["step"])


def data_hash(sampler: Sampler) -> str | None:
    """The hash of the data that a checkpoint was trained on; None for an exported file, which does not tell."""
    return sampler.metadata.get("data")
