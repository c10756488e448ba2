"""Every system of the family is a setting of one: equal settings are equal runs, and the switches do what they say."""

import pytest
import torch
from helpers import TINY
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.config.grids import grids
from ggcn.config.schema import HiddenChainConfig
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning.learner import Learner
from ggcn.learning.objectives import EnergyObjective
from ggcn.models import build
from ggcn.sampling.draw import hidden_chain
from ggcn.sampling.langevin import energy_gradient
from ggcn.sampling.noise import Noise

CPU = torch.device("cpu")


def learner(*overrides: str) -> Learner:
    config = compose([*TINY, "engine=plain", *overrides])
    return Learner(config, Lanes(config.lanes, width=config.train.batch // config.lanes), CPU)


def iterate(learner: Learner, steps: int) -> Learner:
    """Learns from `steps` batches of coloured noise."""
    dice = torch.Generator().manual_seed(0)
    size = learner.config.model.grids[-1]
    for step in range(steps):
        images = torch.randint(0, 256, (16, 3, size, size), generator=dice, dtype=torch.uint8)
        data = learner.prepare_data(images, step)
        particles = learner.sample(step, data)
        learner.learn_energy(data, particles, step)
        learner.learn_upsamplers(particles, step)
        learner.update_averages(step, particles)
    return learner


def weights(learner: Learner) -> list[Tensor]:
    sides = (learner.energies, learner.upsamplers, learner.ema_energies.module, learner.ema_upsamplers.module)
    return [tensor for side in sides for tensor in side.state_dict().values()]


PLAIN = [
    "model.upsampler.base=plain",
    "model.chain.step_size_scale=0.01",
    "model.flow.gamma_ratio=2",
    "model.flow.jko_fraction=1",
    "train.energy.lr=1e-3",
    "train.upsampler.lr=1e-3",
]
"""for ggcn_contrastive: the defaults of the others"""
EQUALS = {
    "ggcn_contrastive with one grid and gamma 0 is coopnets": (
        ["model=ggcn_contrastive", *PLAIN, "model.grids=[16]", "model.flow.gamma=[0]"],
        ["model=coopnets", "model.grids=[16]"],
    ),
    "ggcn_contrastive with fixed up-sampling from the data's colours and gamma 0 is multigrid": (
        [
            "model=ggcn_contrastive",
            *PLAIN,
            "model.upsampler.kind=fixed",
            "model.chain_init=data",
            "model.flow.gamma=[0]",
        ],
        ["model=multigrid"],
    ),
    "wgcn with gamma 0 is gcn": (
        ["model=wgcn", "model.grids=[16]", "model.flow.gamma=[0]"],
        ["model=gcn", "model.grids=[16]"],
    ),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("claim", list(EQUALS))
def test_equal_settings_are_equal_runs_bit_for_bit(claim: str) -> None:
    one, two = (weights(iterate(learner(*overrides), 3)) for overrides in EQUALS[claim])
    assert len(one) == len(two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.usefixtures("alone")
def test_the_flows_differ_when_gamma_does() -> None:
    one, two = (weights(iterate(learner(f"model={name}", "model.grids=[16]"), 3)) for name in ("gcn", "wgcn"))
    assert not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_network_with_kinks_is_refused_where_it_must_be_differentiated_twice(activation: str) -> None:
    overrides = [*TINY, "model=ggcn_contrastive", f"model.energy.activation={activation}"]
    with pytest.raises(UserError, match=r"cannot be differentiated twice.*take silu or softplus"):
        compose(overrides)
    assert compose([*overrides, "model.flow.gamma=[0]"]).model.energy.activation == activation


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_chains_take_their_gradient_in_the_precision_asked_for() -> None:
    x = torch.rand(8, 3, 16, 16) * 2 - 1
    gradients = {}
    for chain in ("engine", "bf16", "fp32"):
        config = compose([*TINY, "engine.precision=bf16", f"model.chain.precision={chain}"])
        energies, _ = build(config)
        gradients[chain] = energy_gradient(energies.prepared(1), x)
    exact, _ = build(compose([*TINY, "engine.precision=fp32"]))
    assert torch.equal(gradients["fp32"], energy_gradient(lambda x: exact.energy(1, x), x))
    assert torch.equal(gradients["engine"], gradients["bf16"])
    assert 1e-4 < relative(gradients["bf16"], gradients["fp32"]) < 2e-2


def test_the_jko_term_is_taken_in_the_precision_asked_for() -> None:
    terms, slopes = {}, {}
    for precision in ("engine", "bf16", "fp32"):
        config = compose(
            [*TINY, "model=ggcn_contrastive", "engine.precision=bf16", f"model.flow.precision={precision}"]
        )
        energies, _ = build(config)
        objective = EnergyObjective(energies, grids(config.model), "both", 0.0)
        dice = torch.Generator().manual_seed(0)
        data, samples = ([torch.rand(8, 3, s, s, generator=dice) for s in (4, 16)] for _ in range(2))
        loss, columns = objective(data, samples, torch.rand(8, generator=dice))
        terms[precision] = columns[:, 3]
        flat = torch.autograd.grad(loss, list(energies.parameters()))
        slopes[precision] = torch.cat([gradient.flatten() for gradient in flat])
    assert torch.equal(terms["engine"], terms["bf16"])
    assert 1e-5 < relative(terms["bf16"], terms["fp32"]) < 2e-2
    assert 1e-5 < relative(slopes["bf16"], slopes["fp32"]) < 2e-2


def test_hidden_chains_without_an_energy_keep_to_the_normal_distribution() -> None:
    energies, upsamplers = build(
        compose([*TINY, "model=ggcn_contrastive", "model.grids=[4]", "engine.precision=fp32"])
    )
    torch.nn.init.zeros_(energies.grids[0].readout.weight)
    z = torch.zeros(4_000, 8)
    settings = HiddenChainConfig(steps=60, step_size=0.2, temperature=1.0)
    z = hidden_chain(energies, upsamplers, settings, z, Noise([("n",)], CPU))
    assert z.mean().abs() < 0.02
    assert z.var().item() == pytest.approx(1 / (1 - 0.2 / 2), rel=0.02)  # 1, and the bias of steps of 0.2


def test_hidden_chains_descend_the_energy_of_what_z_becomes() -> None:
    energies, upsamplers = build(
        compose([*TINY, "model=ggcn_contrastive", "model.grids=[4]", "engine.precision=fp32"])
    )
    energies.grids[0].readout.weight.data *= 30

    def level(z: Tensor) -> float:
        return (z.square().sum(1) / 2 - energies.neg_energy(0, upsamplers.start(0, z))).mean().item()

    z = torch.randn(64, 8)
    settings = HiddenChainConfig(steps=30, step_size=0.05, temperature=0.0)
    end = hidden_chain(energies, upsamplers, settings, z, Noise([("n",)], CPU))
    shrunk = z * (1 - 0.05) ** 30  # what |z|^2 / 2 does alone
    assert level(end) < level(shrunk) < level(z)
    assert all(parameter.grad is None for parameter in [*energies.parameters(), *upsamplers.parameters()])


@pytest.mark.usefixtures("alone")
def test_hidden_chains_move_what_the_upsampler_is_taught_from() -> None:
    overrides = ["model=coopnets", "model.grids=[16]"]
    still, moved = learner(*overrides), learner(*overrides, "model.hidden_chain.steps=5")
    particles = [one.sample(0, [torch.zeros(16, 3, 16, 16)]) for one in (still, moved)]
    assert not torch.equal(particles[0].inputs[0], particles[1].inputs[0])
    start = moved.upsamplers.start(0, particles[1].inputs[0])
    assert torch.equal(start, particles[1].starts[0])


@pytest.mark.usefixtures("alone")
def test_multigrid_remembers_the_colours_it_met() -> None:
    learner_ = learner("model=multigrid", "model.grids=[4,16]", "model.chain.steps=[1]")
    dice = torch.Generator().manual_seed(0)
    mix = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.1, 0.0], [0.0, -0.1, 0.05]])
    colours = torch.randn(40, 16, 3, generator=dice) @ mix.T + torch.tensor([0.1, -0.2, 0.3])
    for step, batch in enumerate(colours):
        data = [batch[:, :, None, None].expand(-1, -1, size, size) for size in (4, 16)]
        particles = learner_.sample(step, data)
        assert torch.allclose(particles.starts[0], data[0], atol=1e-6)
        learner_.update_averages(step, particles)
    law = learner_.ema_upsamplers.module.colours
    met = colours.flatten(0, 1)
    drawn = law.colours(torch.randn(50_000, 3, generator=dice)).flatten(1)
    assert torch.allclose(drawn.mean(0), met.mean(0), atol=0.01)
    assert torch.allclose(drawn.T.cov(), met.T.cov(correction=0), atol=0.005)
