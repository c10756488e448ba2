"""Interpolation between latent vectors."""

import pytest
import torch
from tiny_model import tiny_sampler

from ggcn.applications.interpolation import interpolate, slerp
from ggcn.errors import UserError


def test_an_interpolation_starts_and_ends_at_the_samples() -> None:
    sampler = tiny_sampler("model.chain.temperature=[0]")
    drawn = sampler.draw(0, 6, seed=3).ends[-1]
    rows = interpolate(sampler, range(1, 3), 3, 5)
    assert rows.shape == (2, 5, 3, 16, 16)
    assert torch.allclose(rows[:, 0], drawn[[2, 4]], atol=1e-5)
    assert torch.allclose(
        rows[:, -1], drawn[[3, 5]], atol=1e-5
    )  # without noise; otherwise all share the first one's noise
    noisy = tiny_sampler()
    first = interpolate(noisy, range(1), 3, 3)[0, 0]
    assert torch.allclose(first, noisy.draw(0, 1, seed=3).ends[-1][0], atol=1e-5)


def test_slerp_keeps_the_length() -> None:
    a, b = (
        torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[0.0, 3.0], [2.0, 0.0], [-1.0, -1.0]]),
    )
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle[0], torch.tensor([3.0, 3.0]) / 2**0.5)
    assert torch.allclose(middle[1], torch.tensor([1.5, 0.0]))
    assert middle.isfinite().all()
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)


def test_models_without_z_are_refused() -> None:
    with pytest.raises(UserError, match="no z to interpolate in gcn, whose chains start from replay_buffer"):
        interpolate(tiny_sampler("model=gcn", "model.grids=[16]"), range(1), 0, 3)
