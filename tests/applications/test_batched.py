"""What a notebook's user calls: methods of a sampler, with documented shapes and mistakes in one sentence."""

import pytest
import torch
from tiny_model import TRANSPORT, random_images, tiny_sampler, with_slopes

from ggcn.errors import UserError

MASK = torch.arange(256).view(16, 16) >= 128


def test_methods_give_the_documented_shapes_whatever_the_batch() -> None:
    sampler, images = with_slopes(), random_images(6)
    filled = sampler.inpaint(images, MASK, seed=1)
    assert filled.shape == images.shape
    assert torch.equal(filled[:, :, MASK], images[:, :, MASK])
    assert torch.allclose(sampler.inpaint(images, MASK, seed=1, batch=4), filled, atol=1e-4)
    clean = sampler.denoise(images, std=0.2)
    assert clean.shape == images.shape
    assert torch.allclose(sampler.denoise(images, std=0.2, batch=4), clean, atol=1e-4)
    energies = sampler.energy(images)
    assert energies.shape == (6, 2)
    assert torch.allclose(sampler.energy(images.double(), batch=2), energies, atol=1e-5)
    rows = sampler.interpolate(count=3, rows=2, seed=1)
    assert rows.shape == (2, 3, 3, 16, 16)
    assert torch.allclose(sampler.interpolate(3, 2, 1, batch=3), rows, atol=1e-4)
    assert sampler.inpaint(images[:0], MASK).shape == (0, 3, 16, 16)
    assert sampler.energy(images[:0]).shape == (0, 2)


def test_what_does_not_fit_is_one_sentence() -> None:
    sampler, images = tiny_sampler(*TRANSPORT), random_images(2)
    wrong = {
        r"the images are \[2, 3, 8, 8\]; this model takes a tensor \[n, 3, 16, 16\]": lambda: sampler.energy(
            random_images(2, 8)
        ),
        r"the images are torch.uint8; pixels must be floats": lambda: sampler.energy(images.to(torch.uint8)),
        r"the mask is torch.float32 \[16, 16\]; it must be torch.bool": lambda: sampler.inpaint(
            images, MASK.float()
        ),
        "leaves nothing to fill in": lambda: sampler.inpaint(images, torch.ones_like(MASK)),
        r"std=0 must lie in": lambda: sampler.denoise(images, 0),
        "not finite": lambda: sampler.energy(images / 0),
        "count=1 must be at least 2": lambda: sampler.interpolate(1),
    }
    for sentence, call in wrong.items():
        with pytest.raises(UserError, match=sentence):
            call()
