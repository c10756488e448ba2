"""The flow-matching rival of the comparison: what it computes, and that it has the operations of the default model."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ggcn.config.compose import compose
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning.learner import Learner
from tools.benchmarks import flow_matching as tool


class Field(torch.nn.Module):
    """v(x, t) = (target - x) / (1 - t), which carries every x to the target in a straight line."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = torch.nn.Parameter(torch.tensor(target))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (self.target - x) / (1 - t[:, None, None, None])


@pytest.mark.parametrize("kind", tool.SOLVERS)
def test_straight_lines_are_integrated_exactly(kind: str) -> None:
    images = tool.sample(Field(0.2), torch.Size([3, 8, 8]), 5, 0, kind, 4)  # type: ignore[arg-type]
    assert images.shape == (5, 3, 8, 8)
    assert (images - round(1.2 * 127.5)).abs().max() <= 1


def test_the_network_learns_the_displacement_from_noise_to_data() -> None:
    torch.manual_seed(0)
    images = torch.full((16, 3, 8, 8), 0.5)
    net = tool.train(images, steps=200, batch=16, width=16, lr=5e-3)
    noise, t = torch.randn(16, 3, 8, 8), torch.linspace(0, 0.9, 16)
    with torch.no_grad():
        error = net(noise.lerp(images, t[:, None, None, None]), t) - (images - noise)
    assert (
        error.square().mean() < 0.9
    )  # 1 for the mean displacement alone; 0.96 after 50 steps, and it still falls


@pytest.mark.parametrize("name", ["heun", "heun-0", "rk4-10", "heun-x", ""])
def test_a_solver_that_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(UserError, match="write heun-25"):
        tool.parse_solver(name)


def operations(step) -> float:
    """Floating-point operations of convolutions and products."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = nullcontext()  # type: ignore[assignment]  # it cannot follow a second derivative
    counter.mod_tracker.parents = {"Global"}  # type: ignore[attr-defined]
    with counter:
        step()
    return counter.get_total_flops()


@pytest.mark.usefixtures("alone")
def test_a_training_step_has_the_operations_of_the_default_models() -> None:
    config = compose(
        ["engine=plain", "model=ggcn", "data.workers=0", "data.shards=none", "lanes=8", "train.batch=8"]
    )
    learner = Learner(config, Lanes(8, width=1), torch.device("cpu"))
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)

    def step(number: int) -> None:
        data = learner.prepare_data(pixels, number)
        particles = learner.sample(number, data)
        learner.learn_energy(data, particles, number)
        learner.learn_upsamplers(particles, number)

    every = config.model.chain.every
    plain, with_chains = operations(lambda: step(0)), operations(lambda: step(every - 1))
    ours = ((every - 1) * plain + with_chains) / every
    net, t = tool.UNet(tool.parser().get_default("width")), torch.rand(8)
    theirs = operations(lambda: net(pixels / 127.5 - 1, t).square().mean().backward())
    assert theirs / ours == pytest.approx(1.14, abs=0.05)
