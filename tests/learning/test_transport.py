"""The transport regression: its identity, its gradients, its pairs, and what it learns."""

from itertools import permutations

import pytest
import torch
from helpers import TINY
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ggcn.config.compose import compose
from ggcn.config.schema import FlowConfig
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning.learner import Learner
from ggcn.learning.r_squared import r_squared
from ggcn.learning.transport import TransportObjective, assignment, decay
from ggcn.models import fitted

CPU = torch.device("cpu")
WORDS = [*TINY, "engine=plain", "engine.precision=fp32"]


class Potential(nn.Module):
    """f(x) = w . tanh(A x) - |B x|^2 / 2 on [n, d, 1, 1], in the place of a model's energies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        dice = torch.Generator().manual_seed(0)
        shapes = ((width,), (width, width), (width, width))
        self.w, self.A, self.B = (
            nn.Parameter(torch.randn(shape, generator=dice, dtype=torch.float64)) for shape in shapes
        )
        self.jko_precision = "fp32"

    def neg_energy(self, grid: int, x: Tensor, precision: str | None = None) -> Tensor:
        flat = x.flatten(1)
        return torch.tanh(flat @ self.A.T) @ self.w - (flat @ self.B.T).square().sum(1) / 2


def coupled(count: int = 4) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, 3, 1, 1, generator=dice, dtype=torch.float64) for _ in range(2))


def test_the_contrastive_loss_with_starts_as_negatives_is_a_regression() -> None:
    f, (start, data), gamma = Potential(3), coupled(), 0.7
    nodes, weights = Gauss.legendre(40)
    left = (f.neg_energy(0, start) - f.neg_energy(0, data)).mean()
    right = -(data - start).square().flatten(1).sum(1).mean() / (2 * gamma)
    for t, weight in zip(nodes, weights, strict=True):
        x = start.lerp(data, t).requires_grad_()
        slope = torch.autograd.grad(f.neg_energy(0, x).sum(), x)[0]
        left = left + weight * gamma / 2 * slope.square().flatten(1).sum(1).mean()
        error = (slope - (data - start) / gamma).square().flatten(1).sum(1).mean()
        right = right + weight * gamma / 2 * error
    assert left.item() == pytest.approx(right.item(), abs=1e-12)


class Gauss:
    """Gauss-Legendre quadrature on [0, 1]."""

    @staticmethod
    def legendre(count: int) -> tuple[list[float], list[float]]:
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(count)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


@pytest.mark.parametrize("decay_from", [1.0, 0.8])
def test_gradients_agree_with_finite_differences(decay_from: float) -> None:
    f, (start, data) = Potential(3), coupled()
    objective = TransportObjective(f, FlowConfig(decay_from=decay_from))
    times = torch.tensor([0.1, 0.5, 0.85, 0.99], dtype=torch.float64)

    def loss(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        names = dict(zip(("energies.w", "energies.A", "energies.B"), (w, a, b), strict=True))
        return torch.func.functional_call(objective, names, ([start], [data], [times], (3.0,)))[0]

    assert torch.autograd.gradcheck(loss, (f.w, f.A, f.B))


def test_a_perfect_force_has_no_loss() -> None:
    start, data = coupled()
    data = start + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1)

    class Straight(Potential):
        def neg_energy(self, grid: int, x: Tensor, precision: str | None = None) -> Tensor:
            return x.flatten(1) @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    loss, terms = TransportObjective(Straight(3), FlowConfig(decay_from=1.0))(
        [start], [data], [torch.rand(4).double()], (5.25,)
    )
    assert loss.item() == pytest.approx(0, abs=1e-24)
    assert terms[0, 1].item() == pytest.approx(5.25)


def test_the_force_fades_towards_the_data() -> None:
    times = torch.tensor([0.0, 0.5, 0.8, 0.9, 1.0])
    assert torch.allclose(decay(times, 0.8), torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0]), atol=1e-6)
    assert torch.equal(decay(times, 1.0), torch.ones(5))


def test_assignment_is_the_cheapest_of_all() -> None:
    dice = torch.Generator().manual_seed(2)
    starts, data = (torch.randn(6, 3, 2, 2, generator=dice) for _ in range(2))

    def cost(order: tuple[int, ...]) -> float:
        return (starts - data[list(order)]).square().sum().item()

    best = min(permutations(range(6)), key=cost)
    assert tuple(assignment(starts, data, lane_width=2).tolist()) == best


def test_assignment_stays_within_blocks_of_whole_lanes() -> None:
    starts, data = torch.randn(768, 4), torch.randn(768, 4)
    chosen = assignment(starts, data, lane_width=96)  # two lanes in a block
    assert sorted(chosen.tolist()) == list(range(768))
    assert torch.equal(chosen // 192, torch.arange(768) // 192)


def learner(*overrides: str, world: int = 1) -> Learner:
    config = compose([*WORDS, *overrides])
    return Learner(config, Lanes(config.lanes, world=world, width=config.train.batch // config.lanes), CPU)


def blobs(count: int, seed: int) -> Tensor:
    """Smooth images, uint8 [count, 3, 16, 16]."""
    dice = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=dice)
    return (interpolate(coarse, size=16, mode="bilinear") * 255).to(torch.uint8)


@pytest.mark.usefixtures("alone")
def test_pairs_are_a_datum_and_its_own_coarser_version() -> None:
    one = learner("model.flow.start_noise=[0.0]", "train.augmentation.probability=0")
    data = one.prepare_data(blobs(16, 0), 0)
    pairs = one.pairs(0, data)
    assert torch.equal(pairs.data[1], data[1])
    assert torch.allclose(pairs.starts[1], interpolate(data[0], size=16, mode="bilinear"), atol=1e-6)
    rows = {tuple(row) for row in data[0].flatten(1).tolist()}
    assert {tuple(row) for row in pairs.data[0].flatten(1).tolist()} == rows


@pytest.mark.usefixtures("alone")
def test_it_learns_what_holds_for_images_it_never_saw() -> None:
    one = learner("train.energy.warmup=5", "model.energy.width=16")
    fitted.fit(one.upsamplers, blobs(256, 1), one.config.model.grids, mirrored=False)
    one.load_linear_maps(dict(one.upsamplers.named_buffers()))
    held_out = blobs(128, 2)

    def measured() -> Tensor:
        return r_squared(one.config, one.ema_energies.module, one.ema_upsamplers.module, held_out)

    before = measured()
    for step in range(150):
        data = one.prepare_data(blobs(16, 100 + step), step)
        particles = one.sample(step, data)
        one.learn_energy(data, particles, step)
        one.learn_upsamplers(particles, step)
        one.update_averages(step, particles)
    after = measured()
    assert before.abs().max() < 0.02
    assert after.min() > 0.05
    assert after[1] > 0.3


@pytest.mark.usefixtures("alone")
def test_chains_come_in_every_nth_step_and_start_at_the_linear_maps() -> None:
    one = learner("model.chain.every=3")
    data = one.prepare_data(blobs(16, 0), 0)
    particles = [one.sample(step, data) for step in range(6)]
    assert [bool(each) for each in particles] == [False, False, True, False, False, True]
    result = particles[2]
    assert result is not None
    assert torch.equal(result.starts[1], one.upsamplers.base(1, result.inputs[1]))
    assert one.learn_upsamplers(result, 2).keys() >= {"amortization/4", "amortization/16"}
    assert one.learn_upsamplers(None, 3) == {}


@pytest.mark.usefixtures("alone")
def test_up_samplers_learn_where_the_averaged_energies_chains_end() -> None:
    one = learner("train.upsampler.warmup=5", "train.upsampler.lr=0.003", "model.upsampler.width=16")
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in one.ema_energies.module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=dice))
        one.upsamplers.grids[0].base.weight.normal_(std=0.3, generator=dice)
    absorbed = []
    for step in range(60):
        particles = one.sample(step, one.prepare_data(blobs(16, step), step))
        metrics = one.learn_upsamplers(particles, step)
        absorbed.append(metrics["absorbed/16"].item())
    assert absorbed[0] == pytest.approx(0, abs=1e-5)
    assert sum(absorbed[-10:]) / 10 > 0.5
    assert particles is not None
    assert particles.mean_squared_displacements().min() > 1e-4


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("model.chain.init_from=upsampler", "set model.chain.init_from=base"),
        ("model.upsampler.norm=lane", "is for model.upsampler.kind=convnet"),
        ("model.upsampler.base=plain", "set model.chain_init=hidden and model.upsampler.base=fitted"),
        ("model.chain_init=noise", "set model.chain_init=hidden"),
        ("model.energy.kind=frame", "transport needs convnet"),
        ("model.flow.decay_from=0", r"must lie in \(0, 1\]"),
        ("model.flow.start_noise=[0.1,0.2,0.3]", "has 3 entries for 2 grids"),
        ("model.energy.activation=relu", "kinks"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(word: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose([*WORDS, word])
