"""The Gaussian baseline is a Gaussian of the right mean and covariance."""

import pytest
import torch

from ggcn.evaluation.pca_gaussian import pca_gaussian


def test_it_has_the_images_mean_and_main_directions() -> None:
    rng = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(48, 3, generator=rng))
    scores = torch.randn(4000, 3, generator=rng) * torch.tensor([60.0, 40.0, 20.0])
    pixels = (128 + scores @ axes.T).clamp(0, 255).round().to(torch.uint8).view(-1, 3, 4, 4)
    drawn = pca_gaussian(pixels, 3, 4000, seed=0).flatten(1).float()
    assert torch.allclose(drawn.mean(0), pixels.flatten(1).float().mean(0), atol=2.5)
    assert ((drawn - 128) @ axes).std(0).tolist() == pytest.approx([60, 40, 20], rel=0.05)
    assert torch.equal(pca_gaussian(pixels, 3, 10, seed=5), pca_gaussian(pixels, 3, 10, seed=5))
