"""Energies of given images."""

import torch
from tiny_model import random_images, tiny_sampler

from ggcn.applications.energies import energies
from ggcn.evaluation import samples
from ggcn.evaluation.images import to_bytes, to_floats


def test_energies_are_those_of_the_model_on_every_grid() -> None:
    sampler, pixels = tiny_sampler(), to_bytes(random_images(6))
    values = energies(sampler, to_floats(pixels))
    assert torch.allclose(values[:, -1], samples.energies(sampler, pixels))
    coarse = torch.nn.functional.avg_pool2d(to_floats(pixels), 4)
    with torch.no_grad():
        assert torch.allclose(values[:, 0], sampler.energies.energy(0, coarse, "fp32"))
