"""Configuration: every experiment is sound, every mistake is one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY

from ggcn.config.compose import compose, load, to_yaml
from ggcn.config.folders import groups, options
from ggcn.config.grids import grids as grid_settings
from ggcn.config.validation import validate_world
from ggcn.errors import UserError

EXPERIMENTS = list(options("experiment"))
PRESETS = [f"{group}={name}" for group in groups() for name in options(group)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes(preset: str) -> None:
    config = compose([preset])
    assert len(grid_settings(config.model)) == len(config.model.grids)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_its_run(experiment: str) -> None:
    assert compose([f"experiment={experiment}"]).run == experiment


def test_a_frozen_config_comes_back_as_it_was(tmp_path: Path) -> None:
    config = compose([*TINY, "model.sigma=inf", "+data.mixture={shards/a: 1.5, b: 2}"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(path) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.step=3", "unknown key train.step; did you mean train.steps?"),
        ("model.chain.step_siz=[1]", "unknown key model.chain.step_siz; did you mean model.chain.step_size?"),
        ("train.steps=many", "train.steps"),
        ("lanes=[1,2]", "lanes"),
        (
            "model=nosuch",
            "there is no model=nosuch; choose one of coopnets, frame, gcn, ggcn, ggcn_contrastive, igebm, multigrid, "
            "shortrun, wgcn",
        ),
        ("experiment=nosuch", "there is no experiment=nosuch; choose one of"),
        ("train.batch=63", "train.batch=63 is not a multiple of lanes=8"),
        ("model.grids=[8,24]", "powers of two"),
        ("model.grids=[32,8]", "must grow from the coarsest"),
        ("model.grids=[]", "powers of two"),
        ("model.chain.steps=[1,2,3]", "model.chain.steps has 3 entries for 2 grids"),
        ("model.chain.step_size=[-1]", "model.chain.step_size=[-1.0] must have entries in [0, inf)"),
        ("engine.precision=fp16", "loss scaling does not reach into chains"),
        ("engine.zero_stage=3", "would gather all weights again"),
        ("run=a/b", "is no folder name"),
        ("checkpoint.keep=0", "checkpoint.keep=0 must lie in [1, inf]"),
        ("train.ema=1.0", "train.ema=1.0 must lie in [0, 0.9999999]"),
        ("run", "run"),
        ("train.energy.beta1=1.5", "train.energy.beta1=1.5 must lie in"),
        ("model.chain.step_size=[nan]", "must have entries in [0, inf)"),
        ("cluster.ranks=0", "cluster.ranks=0 must lie in [1, inf]"),
        ("data.workers=-1", "data.workers=-1 must lie in [0, inf]"),
        ("data.mixture={a: 1}", "+data.mixture={FOLDER: WEIGHT, FOLDER: WEIGHT}"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hidden_chains_want_a_hidden_z() -> None:
    with pytest.raises(UserError, match="steps=2 moves z, and model.chain_init=data has none"):
        compose(["model=multigrid", "model.hidden_chain.steps=2"])


def test_a_typo_in_a_frozen_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose(TINY)).replace("energy_l2", "energy_12"))
    with pytest.raises(UserError, match="energy_12"):
        load(path)


def test_lanes_and_ranks_must_agree() -> None:
    config = compose(["lanes=8"])
    validate_world(config, 4)
    with pytest.raises(
        UserError, match="3 ranks cannot share lanes=8 equally; set cluster.ranks to a divisor of 8"
    ):
        validate_world(config, 3)


def test_composing_needs_no_torch() -> None:
    code = (
        "import sys; from ggcn.config.compose import compose; compose([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_chains_scale_with_the_grid_unless_told_otherwise() -> None:
    model = compose(["model=ggcn_contrastive", "model.grids=[16,64]", "model.chain.step_size=[2.0]"]).model
    coarse, fine = grid_settings(model)
    assert (coarse.step_size, fine.step_size, fine.gamma, fine.temperature) == (2.0, 2.0, 2.0, 5e-6)
    coarse, fine = grid_settings(compose(["model=ggcn_contrastive", "model.grids=[16,64]"]).model)
    assert fine.step_size == 16 * coarse.step_size == 64**2 * 0.02
    assert fine.step_size * fine.temperature == coarse.step_size * coarse.temperature
