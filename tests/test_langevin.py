"""Chains against what is known in closed form."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from ggcn.config import Grid
from ggcn.sampling.langevin import langevin
from ggcn.sampling.noise import Noise

CHAINS = 40_000


def run(stiffness: Tensor, start: float, steps: int, a: float, temperature: float) -> Tensor:
    """Chains under E(x) = sum k x^2 / 2, one stiffness k per pixel; [CHAINS, pixels]."""
    grid = Grid(size=1, steps=steps, step_size=a, temperature=temperature, gamma=0.0)
    begin = torch.full((CHAINS, len(stiffness), 1, 1), start)

    def energy(x: Tensor) -> Tensor:
        return (stiffness * x.flatten(1).square()).sum(1) / 2

    end, _ = langevin(energy, begin, grid, Noise([("chain", steps)], torch.device("cpu")))
    return end.flatten(1).double()


@pytest.mark.parametrize(("steps", "temperature"), [(1, 1.0), (7, 1.0), (7, 0.2), (60, 1.0)])
def test_a_quadratic_energy_gives_the_closed_form(steps: int, temperature: float) -> None:
    stiffness, a, start = torch.tensor([0.5, 1.0, 3.0]), 0.3, 2.0
    x = run(stiffness, start, steps, a, temperature)
    shrink = (1 - a * stiffness.double()) ** steps
    # the variance of the discretised chain, its bias included; its limit is 2T / (k (2 - a k)), not T / k
    limit = 2 * temperature / (stiffness.double() * (2 - a * stiffness.double()))
    variance = limit * (1 - shrink**2)
    error = 5 / sqrt(CHAINS)
    assert torch.allclose(x.mean(0), start * shrink, atol=error * variance.max().sqrt().item())
    assert torch.allclose(x.var(0), variance, rtol=2 * error, atol=1e-12)
    correlation = torch.corrcoef(x.T).fill_diagonal_(0)
    assert correlation.abs().max() < error


def test_at_temperature_1_small_steps_reach_the_boltzmann_law() -> None:
    stiffness = torch.tensor([0.7, 2.0])
    x = run(stiffness, 0.0, steps=600, a=0.02, temperature=1.0)
    assert torch.allclose(x.var(0), 1 / stiffness.double(), rtol=0.04)


def test_the_report_says_what_the_chain_did() -> None:
    grid = Grid(size=4, steps=9, step_size=0.5, temperature=0.02, gamma=0.0)
    start = torch.zeros(64, 3, 4, 4)
    end, flat = langevin(lambda x: 0 * x.flatten(1).sum(1), start, grid, Noise([("n",)], torch.device("cpu")))
    assert abs(flat.relative_displacement.mean() - 1) < 0.05  # nothing but noise
    assert torch.allclose(flat.displacement, end.flatten(1).square().mean(1).sqrt())
    _, pulled = langevin(lambda x: x.flatten(1).sum(1), start, grid, Noise([("n",)], torch.device("cpu")))
    assert torch.allclose(pulled.gradient, torch.full((64,), sqrt(3 * 4 * 4)))
    assert (pulled.saturation == 1).all()  # 9 steps of 0.5 * 1 carry every pixel beyond -1
    assert (pulled.relative_displacement > 5).all()


def test_the_start_is_left_alone_and_the_end_is_free() -> None:
    start = torch.ones(2, 1, 4, 4)
    grid = Grid(size=4, steps=2, step_size=0.1, temperature=0.0, gamma=0.0)
    end, _ = langevin(
        lambda x: x.square().flatten(1).sum(1), start, grid, Noise([("n",)], torch.device("cpu"))
    )
    assert torch.equal(start, torch.ones(2, 1, 4, 4))
    assert not end.requires_grad
    assert torch.allclose(end, torch.full_like(end, 0.8**2))
