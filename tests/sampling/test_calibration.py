"""The chain time of a transport model's samples, calibrated on images."""

import pytest
import torch
from tiny_model import TRANSPORT, random_images, tiny_sampler, with_slopes

from ggcn.evaluation.images import to_bytes
from ggcn.sampling.calibration import STATISTIC, calibrate, is_calibrated
from ggcn.sampling.sampler import Sampler


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("time", [1.4, 1.7])
def test_samples_calibrate_to_the_time_of_their_chains(time: float) -> None:
    sampler = with_slopes("model.chain.steps=[8]")
    images = to_bytes(sampler.sample(128, seed=sampler.config.seed, time=time))
    settings = calibrate(sampler, images)
    assert settings["statistic"] == STATISTIC
    assert settings["time"] == pytest.approx([time], abs=0.05)
    assert calibrate(sampler, images) == settings


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("time", [0.3, 0.5])
def test_short_chains_after_the_up_samplers_have_a_time_of_their_own(time: float) -> None:
    sampler = with_slopes()
    images = to_bytes(sampler.sample(128, seed=sampler.config.seed, mode="amortized", time=time))
    settings = calibrate(sampler, images)
    assert settings["amortized_time"] == pytest.approx([time], abs=0.05)
    own = Sampler(sampler.config, sampler.energies, sampler.upsamplers, metadata={"sampling": settings})
    assert [grid.step_size for grid in own.with_settings(mode="amortized").grids] == settings[
        "amortized_time"
    ] * 2
    assert own.grids[0].steps * own.grids[0].step_size == pytest.approx(settings["time"][0])


@pytest.mark.usefixtures("alone")
def test_a_calibrated_time_stays_within_bounds() -> None:
    sampler = with_slopes("model.chain.steps=[8]")
    far, near = (to_bytes(sampler.sample(64, time=time)) for time in (4.0, 0.1))
    assert calibrate(sampler, far)["time"] == [2.2]
    assert calibrate(sampler, near)["time"] == [1.0]


@pytest.mark.usefixtures("alone")
def test_energies_that_do_not_fall_leave_the_time_of_the_config() -> None:
    sampler = tiny_sampler(*TRANSPORT)
    with torch.no_grad():
        for weight in sampler.energies.parameters():
            weight.zero_()
    images = to_bytes(random_images(20))
    assert calibrate(sampler, images) == {"time": [1.6], "statistic": "none", "amortized_time": [0.4]}


def test_only_transport_models_with_a_time_are_calibrated() -> None:
    assert is_calibrated(tiny_sampler(*TRANSPORT).config)
    assert not is_calibrated(tiny_sampler(*TRANSPORT, "model.chain.time=0").config)
    assert not is_calibrated(tiny_sampler("model=ggcn_contrastive").config)
