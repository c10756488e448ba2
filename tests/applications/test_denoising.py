"""Denoising against closed forms."""

import pytest
import torch
from tiny_model import MEAN, PRECISION, gaussian_energy, random_images, tiny_sampler

from ggcn.applications.denoising import denoise, energy_weight, gradient_descent


@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_denoising_under_a_gaussian_is_the_wiener_filter(weight: float) -> None:
    y, std = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 0.7
    weights = torch.full((5,), weight)
    x = gradient_descent(
        gaussian_energy, torch.zeros_like(y), y, std, weights, steps=400, step_size=0.4
    ).flatten(1)
    both = weight * PRECISION + torch.eye(4) / std**2
    wiener = torch.linalg.solve(both, (weight * PRECISION @ MEAN + y.flatten(1) / std**2).T).T
    assert torch.allclose(x, wiener, atol=1e-4)


def test_the_default_weight_mixes_start_and_noisy_image_by_their_variances() -> None:
    torch.manual_seed(0)
    truth, std, start_std = torch.zeros(3, 3, 64, 64), 0.2, torch.tensor([0.1, 0.2, 0.4])[:, None, None, None]
    y, start = truth + std * torch.randn(truth.shape), truth + start_std * torch.randn(truth.shape)
    weight = energy_weight(start, y, std, steps=8, step_size=5.0)
    x = gradient_descent(lambda x: 0 * x.flatten(1).sum(1), start, y, std, weight, 8, 5.0)
    share = start_std**2 / (start_std**2 + std**2)
    assert torch.allclose(x, torch.lerp(start, y, share), atol=0.05)
    best = (
        start_std**2 * std**2 / (start_std**2 + std**2)
    ).flatten()  # the variance that is left, below either one's
    assert torch.allclose(x.square().flatten(1).mean(1), best, rtol=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=coopnets", "model.grids=[16]"],
        ["model=wgcn", "model.grids=[16]", "model.replay_buffer.cold_start_factor=4"],
    ],
)
def test_denoising_does_not_depend_on_the_batch(overrides: list[str]) -> None:
    sampler, images = tiny_sampler(*overrides), random_images(5)
    full = denoise(sampler, images, 0.2, 0, seed=1)
    assert full.isfinite().all()
    alone = denoise(sampler, images[3:], 0.2, 3, seed=1)
    assert torch.allclose(alone, full[3:], atol=1e-3)
