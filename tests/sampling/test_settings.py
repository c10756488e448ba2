"""A sampler's chains run as the caller says, and as the model says otherwise."""

from collections.abc import Sequence

import pytest
import torch
from tiny_model import tiny_sampler, with_slopes
from torch import Tensor

from ggcn.errors import UserError
from ggcn.sampling.sampler import Sampler


@pytest.fixture
def transport() -> Sampler:
    return with_slopes()


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square."""
    return (a - b).square().mean().sqrt().item()


def test_more_steps_of_the_same_time_lead_to_nearly_the_same_images(transport: Sampler) -> None:
    few, many, most = (transport.sample(4, steps=steps) for steps in (8, 64, 128))
    moved = distance(transport.sample(4, time=0.01), most)
    assert moved > 0.01
    assert distance(many, most) < distance(few, most) < 0.2 * moved
    assert distance(transport.sample(4, steps=128, time=0.8), most) > 5 * distance(many, most)


def test_settings_are_those_of_the_model_by_default(transport: Sampler) -> None:
    assert [grid.start_noise for grid in transport.grids] == [0.0, 0.0]
    assert [(grid.steps, grid.temperature) for grid in transport.grids] == [(3, 0.0)] * 2
    assert [grid.steps * grid.step_size for grid in transport.grids] == pytest.approx([1.6, 1.6])
    own = transport.sample(3, seed=2)
    assert torch.equal(transport.sample(3, seed=2, steps=3, temperature=0, noise=0), own)
    assert torch.equal(transport.with_settings(noise=[0.0, 0.0]).draw(0, 3, 2).ends[-1][:3], own)


def test_each_grid_may_have_its_own_settings(transport: Sampler) -> None:
    first, second = transport.with_settings([2, 5], time=[1.0, 2.0], temperature=0.1, noise=[0.0, 0.3]).grids
    assert (first.steps, first.step_size, first.temperature, first.start_noise) == (2, 0.5, 0.1, 0.0)
    assert (second.steps, second.step_size, second.temperature, second.start_noise) == (5, 0.4, 0.1, 0.3)
    assert transport.with_settings(time=1.0).with_settings(steps=4).grids[0].step_size == 0.25
    assert transport.grids[0].steps == 3  # a sampler with other settings is another one


def test_noise_is_added_to_the_starts_of_chains(transport: Sampler) -> None:
    plain, noisy = (transport.with_settings(noise=std).draw(0, 64, 0).starts[0] for std in (0, 0.3))
    assert (noisy - plain).std().item() == pytest.approx(0.3, rel=0.05)


def test_without_a_time_of_their_own_models_keep_their_step_size() -> None:
    sampler = tiny_sampler("model=ggcn_contrastive")
    assert sampler.with_settings(steps=9).grids == [
        type(grid)(grid.size, 9, grid.step_size, grid.temperature, grid.gamma) for grid in sampler.grids
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be whole numbers, at least 1"),
        ({"steps": [2.5]}, "steps must be whole numbers"),
        ({"steps": [float("nan")]}, "steps must be whole numbers"),
        ({"time": 0}, "time must be above 0"),
        ({"time": float("inf")}, "time must be above 0 and finite"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"noise": [0.1, float("nan")]}, "noise must be at least 0"),
        ({"noise": [0.1, 0.1, 0.1]}, "noise has 3 entries for 2 grids"),
        ({"steps": []}, "steps has 0 entries"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    settings: dict[str, float | Sequence[float]], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_sampler().with_settings(**settings)
