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


def test_up_samplers_take_the_place_of_chains(transport: Sampler) -> None:
    alone = transport.with_settings(mode="amortized", steps=0)
    particles = alone.draw(0, 4, 0)
    coarse = transport.upsamplers.start(0, particles.inputs[0])
    assert torch.equal(particles.ends[0], coarse)
    assert torch.equal(particles.ends[1], transport.upsamplers.start(1, coarse))
    short = transport.with_settings(mode="amortized")
    assert [(grid.steps, grid.step_size, grid.amortized) for grid in short.grids] == [(1, 0.4, True)] * 2
    assert torch.equal(short.draw(0, 4, 0).starts[0], coarse)
    assert not torch.equal(short.sample(4), alone.sample(4))
    assert torch.equal(transport.with_settings(mode="chain").sample(4), transport.sample(4))


def test_up_samplers_see_the_noise_of_their_chains(transport: Sampler) -> None:
    with torch.no_grad():
        transport.upsamplers.grids[0].correction.to_image.weight.normal_(
            generator=torch.Generator().manual_seed(1)
        )
    noisy = transport.with_settings(mode="amortized", steps=0, noise=0.3)
    chain = transport.with_settings(noise=0.3).draw(0, 4, 0)
    foreseen = transport.upsamplers.foreseen_end(0, chain.inputs[0], chain.starts[0])
    assert torch.equal(noisy.draw(0, 4, 0).ends[0], foreseen)
    assert not torch.equal(foreseen, transport.upsamplers.start(0, chain.inputs[0]))


@pytest.mark.parametrize("mode", ["chain", "amortized"])
def test_hidden_chains_lower_the_energy_of_where_chains_start(mode: str) -> None:
    hidden = ("steps=20", "step_size=0.05", "temperature=0")
    still, moved = with_slopes(), with_slopes(*(f"model.hidden_chain.{setting}" for setting in hidden))
    energies = []
    for sampler in (still, moved):
        with torch.no_grad():
            sampler.upsamplers.grids[0].base.weight.normal_(
                std=0.3, generator=torch.Generator().manual_seed(1)
            )
        starts = sampler.with_settings(mode=mode).draw(0, 16, 0).starts[0]
        energies.append(sampler.energies.energy(0, starts).mean().item())
    assert energies[1] < energies[0]


@pytest.mark.parametrize(
    ("model", "mode", "sentence"),
    [
        ("ggcn", "fast", "mode must be chain or amortized, not fast"),
        ("ggcn_contrastive", "amortized", "those of ggcn_contrastive start from the up-samplers"),
        ("gcn", "amortized", "mode amortized is for models"),
    ],
)
def test_modes_that_do_not_exist_are_one_sentence(model: str, mode: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_sampler(f"model={model}").with_settings(mode=mode)


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
