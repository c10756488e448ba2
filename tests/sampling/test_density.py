"""Known 2-D densities, learned by the same learner, chains, replay buffer and objectives that train on images.

A point is an image of one pixel with two channels; only the two networks differ. At temperature 1 the learned
-E must be the true log-density up to a constant.
"""

from collections.abc import Iterator
from math import pi, tau

import pytest
import torch
from helpers import TINY
from torch import Tensor, nn

from ggcn.config.compose import compose
from ggcn.distributed.lanes import Lanes, bits
from ggcn.learning.learner import Learner
from ggcn.models import Energies, Upsamplers

OVERRIDES = [
    *TINY,
    "engine=plain",
    "engine.precision=fp32",
    "lanes=1",
    "train.batch=256",
    "train.energy.lr=3e-3",
    "train.energy_l2=0",
    "train.ema=0.99",
    "model.grids=[4]",
    "model.flow.gamma=[0]",
    "model.chain.temperature=[1]",
    "model.chain.step_size=[0.005]",
    "model.init_std=1",
    "model.replay_buffer.chains=1024",
    "model.replay_buffer.reinit_prob=0.01",
]
MODELS = {
    "persistent": ["model=gcn", "model.chain.steps=[10]"],
    "persistent, jko": ["model=wgcn", "model.chain.steps=[10]", "model.flow.gamma=[1e-3]"],
    "cooperative": ["model=coopnets", "model.chain.steps=[20]", "train.upsampler.lr=1e-3"],
}


@pytest.fixture(autouse=True)
def _one_thread(alone: None) -> Iterator[None]:
    """For tiny matrices more threads only wait for each other; `alone` sets as many as there are cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def eight_gaussians() -> torch.distributions.Distribution:
    angles = torch.arange(8) * tau / 8
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    one = torch.distributions.Independent(torch.distributions.Normal(centres, torch.tensor(0.2)), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(8)), one)


class Ring:
    """Radius ~ N(1, 0.15^2), any angle."""

    radius = torch.distributions.Normal(1.0, 0.15)

    def sample(self, shape: tuple[int]) -> Tensor:
        radius, angle = self.radius.sample(shape), torch.rand(shape) * 2 * pi
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        radius = x.norm(dim=1)
        return self.radius.log_prob(radius) - radius.log()


def plain_net(inputs: int, outputs: int) -> nn.Module:
    layers = [nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, outputs)]
    return nn.Sequential(nn.Flatten(), *layers)


def learner_of_points(overrides: list[str]) -> Learner:
    config = compose([*OVERRIDES, *overrides])
    torch.manual_seed(bits(config.seed))
    energies, upsamplers = Energies(config.model, "fp32"), Upsamplers(config.model, "fp32", 1)
    energies.grids[0] = nn.Sequential(plain_net(2, 1), nn.Flatten(0))
    energies.shape = (2, 1, 1)
    if config.model.chain_init == "hidden":
        upsamplers.grids[0] = nn.Sequential(plain_net(8, 2), nn.Unflatten(1, (2, 1, 1)))
    lanes = Lanes(1, width=config.train.batch)
    return Learner(config, lanes, torch.device("cpu"), (energies, upsamplers))


@pytest.mark.parametrize("system", list(MODELS))
@pytest.mark.parametrize("name", ["eight gaussians", "ring"])
def test_the_energy_learned_is_the_true_log_density(name: str, system: str) -> None:
    density = Ring() if name == "ring" else eight_gaussians()
    learner = learner_of_points(MODELS[system])
    torch.manual_seed(0)
    for step in range(700):
        data = [density.sample((256,))[:, :, None, None]]
        particles = learner.sample(step, data)
        learner.learn_energy(data, particles, step)
        learner.learn_upsamplers(particles, step)
        learner.update_averages(step, particles)
    axis = torch.linspace(-1.6, 1.6, 81)
    plane = torch.cartesian_prod(axis, axis)
    truth = density.log_prob(plane)
    mask = truth > truth.max() - 6  # where there are data
    learned = -learner.ema_energies.module.energy(0, plane[:, :, None, None])
    both = torch.stack([learned, truth])[:, mask]
    correlation = torch.corrcoef(both)[0, 1].item()
    slope = (torch.cov(both)[0, 1] / both[1].var()).item()
    print(f"{name}, {system}: correlation {correlation:.3f}, slope {slope:.2f}")
    assert correlation > 0.9
