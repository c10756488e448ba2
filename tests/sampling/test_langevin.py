"""Chains against what is known in closed form."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from ggcn.config.grids import Grid
from ggcn.config.schema import EnergyConfig, ModelConfig
from ggcn.models.build import Energies, frozen
from ggcn.sampling.langevin import langevin
from ggcn.sampling.noise import Noise
from tools.benchmarks.chain import stock

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


@pytest.fixture(scope="module", params=[8, 32])
def energies(request: pytest.FixtureRequest) -> Energies:
    """Of one grid, whose layers are those of a fine or of a coarse one."""
    torch.manual_seed(request.param)
    energies = Energies(ModelConfig(grids=[request.param], energy=EnergyConfig(width=16)), "fp32")
    torch.nn.init.normal_(energies.grids[0].readout.weight)
    return energies


def chain(
    energies: Energies, precision: str, starts: Tensor, keys: list, temperature: float = 0.01
) -> Tensor:
    """Ends of 5 steps from `starts`, as sampling runs them."""
    grid = Grid(starts.shape[-1], steps=5, step_size=0.05, temperature=temperature, gamma=0.0)
    energies.chain_precision = precision
    with frozen(energies), torch.no_grad():
        return langevin(energies.prepared(0), starts, grid, Noise(keys, torch.device("cpu")))[0]


def starts_of(energies: Energies, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *energies.shape, generator=generator) * 2 - 1


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_a_chain_follows_the_gradient_of_stock_layers(
    energies: Energies, precision: str, tolerance: float
) -> None:
    starts = starts_of(energies, 4)
    ends = chain(energies, precision, starts, [("n",)], temperature=0.0)
    x, descent = starts, stock(energies.grids[0])
    for _ in range(5):
        x = x.detach().requires_grad_()
        x = x - 0.05 * torch.autograd.grad(descent(x).sum(), x)[0]
    moved = (x - starts).norm()
    assert moved > 0.5
    assert (ends - x).norm() < tolerance * moved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lanes_chains_do_not_depend_on_their_company(energies: Energies, precision: str) -> None:
    starts, keys = starts_of(energies, 6), [("lane", lane) for lane in range(3)]
    together = chain(energies, precision, starts, keys)
    alone = torch.cat([chain(energies, precision, starts[2 * k : 2 * k + 2], [keys[k]]) for k in range(3)])
    apart = (together - chain(energies, precision, starts, [("other", lane) for lane in range(3)])).norm()
    assert (together - alone).norm() < (1e-5 if precision == "fp32" else 5e-2) * apart


def test_the_jko_terms_gradient_is_that_of_stock_layers(energies: Energies) -> None:
    net, twin = energies.grids[0], stock(energies.grids[0])
    x = starts_of(energies, 3).requires_grad_()
    found = []
    for network in (net, twin):
        slope = torch.autograd.grad(network(x).sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), list(network.parameters())))
    (*ours, our_readout), (*theirs, their_readout) = found
    pairs = [*zip(ours, theirs, strict=True), (our_readout, -their_readout)]  # stock layers give -f
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_noise_has_the_moments_and_quantiles_of_the_normal_law() -> None:
    noise = Noise([("law", lane) for lane in range(4)], torch.device("cpu"))
    values = torch.cat([noise.normal(4, 99_999).flatten() for _ in range(3)]).double()
    assert len(values) == 4 * 3 * 99_999  # a number of draws that fills no whole word
    error = 5 / sqrt(len(values))
    moments = [values.mean(), values.square().mean(), values.pow(3).mean(), values.pow(4).mean()]
    spreads = [1, sqrt(2), sqrt(15), sqrt(96)]
    for found, law, spread in zip(moments, [0, 1, 0, 3], spreads, strict=True):
        assert abs(found - law) < spread * error
    at = torch.linspace(-3.5, 3.5, 15, dtype=torch.float64)
    below = (values[:, None] < at).double().mean(0)
    assert (below - torch.special.ndtr(at)).abs().max() < error
