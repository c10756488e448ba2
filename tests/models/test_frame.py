"""FRAME: what the fixed filters see, and what their linear energy learns, against closed forms."""

from math import cos, pi, sin

import pytest
import torch
from helpers import TINY
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.config.grids import Grid, grids
from ggcn.config.schema import FilterConfig
from ggcn.distributed.lanes import Lanes
from ggcn.learning.learner import Learner
from ggcn.learning.objectives import EnergyObjective
from ggcn.models import Energies, build
from ggcn.models.frame import COLOURS, WAVELENGTH, FilterBank, FrameEnergy

ORIENTATIONS = 6


def grating(angle: float, colour: tuple[float, ...]) -> Tensor:
    """A wave across `angle` [1, 3, 32, 32] in one colour direction."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.cos(2 * pi / WAVELENGTH * (x * cos(angle) + y * sin(angle)))
    return (torch.tensor(colour)[:, None, None] * wave)[None]


def strengths(x: Tensor) -> Tensor:
    """Mean |r| of every filter on the full scale, away from the margin."""
    features = FilterBank(32, FilterConfig(orientations=ORIENTATIONS))(x)[0]
    return features.chunk(2, 1)[1][0, :, 4:-4, 4:-4].mean((1, 2))


@pytest.mark.parametrize("number", range(ORIENTATIONS))
def test_each_gabor_pair_answers_to_its_own_orientation(number: int) -> None:
    pairs = strengths(grating(pi * number / ORIENTATIONS, COLOURS[0]))[: 2 * ORIENTATIONS].view(-1, 2).sum(1)
    assert pairs.argmax() == number
    assert pairs[number] > 1.3 * pairs.sort().values[-2]


def test_plain_images_excite_only_the_gaussians() -> None:
    answers = strengths(torch.full((1, 3, 32, 32), 0.7))
    seen = (answers > 1e-4).nonzero().flatten().tolist()
    assert seen == [2 * ORIENTATIONS + 1]  # brightness; a grey has no opponent colours


def test_a_wave_of_colour_without_brightness_is_seen_by_the_colour_filters_alone() -> None:
    answers = strengths(grating(0.0, COLOURS[1]))
    assert answers[: 2 * ORIENTATIONS].max() < 1e-4
    assert answers[2 * ORIENTATIONS + 2] > 1e-3


def frame(size: int, *args: str) -> tuple[Energies, Grid]:
    overrides = ["model=frame", f"model.grids=[{size}]", "engine.precision=fp32", *args]
    config = compose([*TINY, *overrides])
    return build(config)[0], grids(config.model)[0]


@pytest.mark.parametrize("weights", ["stationary", "position", "both"])
def test_the_energy_is_linear_in_its_weights_and_starts_at_its_reference(weights: str) -> None:
    energy = FrameEnergy(8, FilterConfig(scales=2, orientations=2, weights=weights)).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(energy(x), torch.zeros(3, dtype=torch.float64))
    parts = [torch.randn_like(weight) for weight in energy.parameters()]
    scores = []
    for scale in (1.0, 3.0):
        for weight, part in zip(energy.parameters(), parts, strict=True):
            weight.data = scale * part
        scores.append(energy(x))
    assert torch.allclose(3 * scores[0], scores[1])


def test_the_jko_term_is_a_quadratic_form_of_the_weights() -> None:
    """gamma/2 mean |grad f|^2 = gamma/2 w' G w with G = mean J J', J the Jacobian of the features' sums."""
    energies, _ = frame(8, "model.energy.filters.weights=stationary", "model.energy.filters.orientations=2")
    energies = energies.double()
    dice = torch.Generator().manual_seed(0)
    weights = list(energies.parameters())
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=dice, dtype=torch.float64)
    data, samples = (torch.randn(5, 3, 8, 8, generator=dice, dtype=torch.float64) for _ in range(2))
    grid = Grid(size=8, steps=1, step_size=1.0, temperature=0.0, gamma=3.0)
    loss, terms = EnergyObjective(energies, [grid], "samples", 0.0)([data], [samples], torch.rand(5))

    def sums(x: Tensor) -> Tensor:
        return torch.cat([features.sum((0, 2, 3)) for features in energies.grids[0].bank(x[None])])

    w = torch.cat([weight.flatten() for weight in weights])
    jacobians = [torch.autograd.functional.jacobian(sums, x).flatten(1) for x in samples]
    g = torch.stack([j @ j.T for j in jacobians]).mean(0)
    assert terms[0, 3].item() == pytest.approx((w @ g @ w).item(), rel=1e-9)
    h_data, h_samples = (torch.stack([sums(x) for x in part]).mean(0) for part in (data, samples))
    expected = h_samples - h_data + 3.0 * g @ w
    got = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-10)


def stripes(count: int, dice: torch.Generator) -> Tensor:
    """A texture: coloured stripes of any phase, with noise."""
    phases = 2 * pi * torch.rand(count, 1, 1, generator=dice)
    wave = torch.sin(2 * pi / 5 * torch.arange(16.0) + phases).expand(count, 16, 16)
    colours = torch.tensor([0.5, 0.2, -0.3])
    return wave[:, None] * colours[:, None, None] + 0.05 * torch.randn(count, 3, 16, 16, generator=dice)


@pytest.mark.usefixtures("alone")
def test_learning_ends_where_the_responses_match() -> None:
    args = ["model=frame", "model.grids=[16]", "engine=plain", "engine.precision=fp32", "lanes=1"]
    args += ["model.energy.filters.weights=stationary", "model.energy.filters.scales=2", "train.energy_l2=0"]
    args += ["model.chain.steps=[8]", "model.chain.step_size=[1]", "model.chain.temperature=[1e-4]"]
    config = compose([*TINY, *args])
    learner = Learner(config, Lanes(1, width=16), torch.device("cpu"))
    bank = learner.energies.grids[0].bank
    dice = torch.Generator().manual_seed(0)
    differences = []
    for step in range(200):
        data = [stripes(16, dice)]
        particles = learner.sample(step, data)
        learner.learn_energy(data, particles, step)
        differences.append(responses(bank, data[0]) - responses(bank, particles.ends[0]))
    first, last = (torch.stack(part).mean(0).abs().mean() for part in (differences[:10], differences[-80:]))
    assert last < 0.1 * first, (first, last)


def responses(bank: FilterBank, x: Tensor) -> Tensor:
    """H_k, the mean over images of the features' sums."""
    return torch.cat([features.sum((2, 3)).mean(0) for features in bank(x)])
