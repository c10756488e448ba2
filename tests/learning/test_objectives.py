"""What the networks minimise, against closed forms and finite differences."""

import copy

import pytest
import torch
from helpers import TINY
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.config.grids import Grid, grids
from ggcn.config.schema import Config
from ggcn.learning.objectives import AmortizationObjective, EnergyObjective
from ggcn.models import Energies, build

PARTICLES = ("samples", "data", "both", "segments")


def tiny(*overrides: str) -> Config:
    return compose([*TINY, "model=ggcn_contrastive", "engine.precision=fp32", *overrides])


def batches(config: Config, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], Tensor]:
    dice = torch.Generator().manual_seed(0)
    shapes = [(6, 3, size, size) for size in config.model.grids]
    data, samples = ([torch.randn(shape, generator=dice, dtype=dtype) for shape in shapes] for _ in range(2))
    return data, samples, torch.rand(6, generator=dice, dtype=dtype)


def gradients(objective: torch.nn.Module, *inputs: object) -> list[Tensor]:
    loss, _ = objective(*inputs)
    return list(torch.autograd.grad(loss, list(objective.parameters())))


def test_gamma_0_is_the_kl_flow_bit_for_bit() -> None:
    config = tiny("model.flow.gamma=[0.0]", "train.energy_l2=0.0")
    energies, _ = build(config)
    data, samples, shares = batches(config)
    jko = EnergyObjective(energies, grids(config.model), "samples", 0.0)
    got = gradients(jko, data, samples, shares)

    def likelihood() -> Tensor:
        terms = []
        for number, pair in enumerate(zip(data, samples, strict=True)):
            f_data, f_samples = energies.neg_energy(number, torch.cat(pair)).chunk(2)
            terms.append(f_samples.mean() - f_data.mean())
        return torch.stack(terms).sum()

    expected = torch.autograd.grad(likelihood(), list(energies.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("activation", ["silu", "softplus"])
def test_the_jko_gradient_equals_finite_differences(particles: str, activation: str) -> None:
    config = tiny("model.flow.gamma=[0.7]", f"model.energy.activation={activation}")
    energies, _ = build(config)
    objective = EnergyObjective(energies.double(), grids(config.model), particles, 0.1)
    inputs = batches(config, torch.float64)
    analytic = gradients(objective, *inputs)
    dice = torch.Generator().manual_seed(1)
    for parameter, gradient in zip(objective.parameters(), analytic, strict=True):
        direction = torch.randn(parameter.shape, generator=dice, dtype=torch.float64)
        numeric = _slope(objective, parameter, direction, inputs)
        assert abs(numeric - (gradient * direction).sum()) < 1e-6 * max(1.0, abs(numeric))


def _slope(objective: torch.nn.Module, parameter: Tensor, direction: Tensor, inputs: tuple) -> float:
    width = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * width)
        values.append(objective(*inputs)[0].item())
        with torch.no_grad():
            parameter.add_(direction, alpha=-sign * width)
    return (values[0] - values[1]) / (2 * width)


class Linear(torch.nn.Module):
    """f(x) = <w, x>, whose gradient is w everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1)


@pytest.mark.parametrize("particles", PARTICLES)
def test_a_linear_energy_has_the_jko_term_w_squared(particles: str) -> None:
    config = tiny("model.grids=[4]")
    energies = Energies(config.model, "fp32")
    energies.grids[0] = Linear()
    grid = Grid(size=2, steps=1, step_size=1.0, temperature=0.0, gamma=3.0)
    objective = EnergyObjective(energies, [grid], particles, l2=0.0)
    data, samples = [torch.randn(5, 3, 2, 2)], [torch.randn(5, 3, 2, 2)]
    loss, terms = objective(data, samples, torch.rand(5))
    square = energies.grids[0].weight.square().sum()
    low, high, gap, jko = terms[0]
    assert jko == pytest.approx(square.item())
    assert loss.item() == pytest.approx((low - high + 1.5 * square).item(), rel=1e-5)
    assert gap == pytest.approx((low - high).item(), rel=1e-5)


@pytest.mark.parametrize("particles", PARTICLES)
def test_a_share_of_the_particles_is_the_same_share_of_every_lane(particles: str) -> None:
    """So the term does not depend on how lanes are dealt to ranks."""
    config = tiny("model.flow.gamma=[0.7]")
    energies, _ = build(config)

    def jko(width: int, share: float, chosen: list[int]) -> Tensor:
        data, samples, shares = batches(config)
        inputs = [[x[chosen] for x in data], [x[chosen] for x in samples], shares[chosen]]
        objective = EnergyObjective(energies, grids(config.model), particles, 0.0, share, width)
        return objective(*inputs)[1][:, 3]

    half = jko(3, 0.5, list(range(6)))  # of lanes 0 1 2 and 3 4 5
    assert torch.allclose(half, jko(1, 1.0, [0, 1, 3, 4]))
    one_rank_each = [jko(3, 0.5, lane) for lane in ([0, 1, 2], [3, 4, 5])]
    assert torch.allclose(half, torch.stack(one_rank_each).mean(0))
    assert not torch.allclose(half, jko(3, 1.0, list(range(6))), rtol=1e-3)


@pytest.mark.parametrize(
    ("share", "count"), [(0.07, 7), (0.29, 29), (0.14, 14), (0.071, 8), (1.0, 100), (1e-9, 1)]
)
def test_a_share_takes_as_many_particles_as_it_says(share: float, count: int) -> None:
    config = tiny("model.flow.gamma=[0.7]", "model.grids=[4]")
    energies, _ = build(config)
    data, samples = torch.randn(2, 100, 3, 4, 4).unbind()

    def jko(share: float, width: int) -> Tensor:
        objective = EnergyObjective(energies, grids(config.model), "data", 0.0, share, width)
        return objective([data[:width]], [samples[:width]], torch.zeros(width))[1][0, 3]

    assert torch.allclose(jko(share, 100), jko(1.0, count))


def test_the_gaussian_reference_is_part_of_the_energy() -> None:
    config = tiny("model.sigma=0.5", "model.grids=[4]")
    energies, _ = build(config)
    x = torch.randn(3, 3, 4, 4)
    expected = x.square().flatten(1).sum(1) / (2 * 0.5**2) - energies.neg_energy(0, x)
    assert torch.allclose(energies.energy(0, x), expected)


def test_teaching_is_the_mean_squared_distance_to_the_chain_ends() -> None:
    config = tiny()
    _, upsamplers = build(config)
    z, coarse = torch.randn(4, 8), torch.randn(4, 3, 4, 4)
    fine = torch.randn(4, 3, 16, 16)
    loss, errors = AmortizationObjective(upsamplers)([z, coarse], [coarse, fine], [coarse, fine])
    expected = [
        (upsamplers.start(0, z) - coarse).square().mean(),
        (upsamplers.start(1, coarse) - fine).square().mean(),
    ]
    assert torch.allclose(errors, torch.stack(expected))
    assert torch.allclose(loss, sum(expected))


def test_an_untrained_upsampler_interpolates() -> None:
    _, upsamplers = build(tiny())
    coarse = torch.rand(2, 3, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    assert torch.allclose(upsamplers.start(1, coarse), smooth)


def test_lane_norm_does_not_see_other_lanes() -> None:
    config = tiny("model.upsampler.norm=lane", "model.upsampler.base=plain")
    _, upsamplers = build(config)
    z = torch.randn(16, 8)
    alone = torch.cat([upsamplers.start(0, part) for part in z.chunk(4)])
    assert torch.allclose(upsamplers.start(0, z), alone, atol=1e-5)
    moved = z.clone()
    moved[0] += 1
    changed = (upsamplers.start(0, moved) - upsamplers.start(0, z)).flatten(1).abs().amax(1) > 1e-4
    assert changed[:4].all()
    assert not changed[4:].any()


def test_the_seed_decides_the_initial_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first, _ = build(tiny())
    torch.manual_seed(2)
    again, _ = build(tiny())
    other, _ = build(tiny("seed=4"))
    same = copy.deepcopy(first)
    for a, b, c in zip(same.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or not a.any()  # biases, and last layers that start at 0
