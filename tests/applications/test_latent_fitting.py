"""The z of given pixels is found."""

import torch
from tiny_model import tiny_sampler
from torch import Tensor

from ggcn.applications import user_images
from ggcn.applications.latent_fitting import FIT_STD, fit_z


def test_z_is_found_from_half_an_image() -> None:
    sampler = tiny_sampler()
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels = sampler.upsamplers.start(0, z)
    mask = user_images.mask("left", 4)
    start = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    fitted = fit_z(sampler.upsamplers, start, pixels, mask)

    def cost(z: Tensor) -> float:
        with torch.no_grad():
            error = (sampler.upsamplers.start(0, z) - pixels)[:, :, mask]
        return float(error.square().sum() / (2 * FIT_STD**2) + z.square().sum() / 2)

    assert cost(fitted) < 0.5 * cost(start)
    assert cost(fitted) <= cost(z)  # the image's own z is a candidate
    assert not any(parameter.requires_grad for parameter in sampler.upsamplers.parameters())
