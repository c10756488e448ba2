"""In-painting keeps known pixels and samples the conditional distribution of the others."""

import pytest
import torch
from tiny_model import MEAN, PRECISION, gaussian_energy, random_images, tiny_sampler

from ggcn.applications import user_images
from ggcn.applications.inpainting import KnownPixels, conditional_langevin, inpaint, known_pixels
from ggcn.config.grids import Grid
from ggcn.sampling.noise import Noise

CPU = torch.device("cpu")
KNOWN = torch.tensor([[True, False], [False, True]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_inpainting_samples_the_conditional_distribution_of_a_gaussian(temperature: float) -> None:
    chains = 20_000 if temperature else 2
    known, free = torch.tensor([0, 3]), torch.tensor([1, 2])
    y = torch.tensor([1.5, 0.0, 0.0, -1.0]).view(1, 1, 2, 2).expand(chains, 1, 2, 2)
    grid = Grid(size=2, steps=300, step_size=0.03, temperature=temperature, gamma=0.0)
    x = conditional_langevin(
        gaussian_energy, torch.zeros_like(y), KnownPixels(y, KNOWN), grid, Noise([("n",)], CPU)
    ).flatten(1)
    assert torch.equal(x[:, known], y.flatten(1)[:, known])
    inner = PRECISION[free][:, free]
    coupling = PRECISION[free][:, known] @ (torch.tensor([1.5, -1.0]) - MEAN[known])
    mean = MEAN[free] - torch.linalg.solve(inner, coupling)
    assert torch.allclose(x[:, free].mean(0), mean, atol=0.03 if temperature else 5e-3)
    if temperature:
        assert torch.allclose(torch.cov(x[:, free].T), torch.linalg.inv(inner), atol=0.04)


def test_coarse_pixels_are_known_where_all_their_fine_ones_are() -> None:
    images, mask = random_images(2, 8), torch.ones(8, 8, dtype=torch.bool)
    mask[3, 3] = False
    coarse, fine = known_pixels(images, mask, [4, 8], Noise([("n",)], CPU), std=0.0)
    assert torch.equal(fine.mask, mask)
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1, 1] = False
    assert torch.equal(coarse.mask, expected)
    assert torch.allclose(coarse.pixels[:, :, 0, 3], images[:, :, :2, 6:].mean((2, 3)))
    noisy = known_pixels(images, mask, [8], Noise([("n",)], CPU), std=0.5)[0]
    assert (noisy.pixels - images).std().item() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=gcn", "model.grids=[16]", "model.replay_buffer.cold_start_factor=4"],
        ["model=multigrid", "model.grids=[4,16]"],
    ],
)
def test_inpainting_keeps_known_pixels_and_does_not_depend_on_the_batch(overrides: list[str]) -> None:
    sampler, images = tiny_sampler(*overrides), random_images(5)
    mask = user_images.mask("centre", 16)
    full = inpaint(sampler, images, mask, 0, seed=1)
    assert torch.equal(full[:, :, mask], images[:, :, mask])
    assert full.isfinite().all()
    hidden = torch.where(mask, images, torch.full((), 9.0))
    assert torch.equal(inpaint(sampler, hidden, mask, 0, seed=1), full)  # masked pixels have no effect
    alone = inpaint(sampler, images[4:], mask, 4, seed=1)
    assert torch.allclose(alone[0], full[4], atol=1e-3)
    other = inpaint(sampler, images, mask, 0, seed=2)
    assert not torch.allclose(other[:, :, ~mask], full[:, :, ~mask], atol=1e-3)
