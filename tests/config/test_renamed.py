"""Whoever uses a key by its old name is told the new one: on the command line, in presets and in frozen configs."""

from pathlib import Path

import pytest
from helpers import TINY

from ggcn.config import overrides
from ggcn.config.compose import compose, load, to_yaml
from ggcn.config.keys import key_types, sections
from ggcn.config.renamed import RENAMED, RENAMED_PRESETS, RENAMED_VALUES
from ggcn.errors import UserError


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_on_the_command_line(old: str, new: str) -> None:
    for argument in (f"{old}=1", f"+{old}=1"):
        with pytest.raises(UserError) as caught:
            overrides.parse([argument])
        assert str(caught.value) == f"unknown key {old}; it is {new} now"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("model.bank={renewal: 0.1}", "unknown key model.bank; it is model.replay_buffer now"),
        (
            "model={bank: {renewal: 0.1}}",
            "unknown key model.bank.renewal; it is model.replay_buffer.reinit_prob now",
        ),
        ("guard={gap: 3}", "unknown key guard.gap; it is guard.energy_gap now"),
        ("model.chain_init=bank", "model.chain_init=bank is replay_buffer now"),
    ],
)
def test_an_old_name_inside_a_group_and_an_old_value(argument: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([*TINY, argument])
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("now", "before", "sentence"),
    [
        ("  replay_buffer:", "  bank:", "unknown key model.bank; it is model.replay_buffer now"),
        ("gamma_ratio", "strength", "unknown key model.flow.strength; it is model.flow.gamma_ratio now"),
        ("chain_init: hidden", "chain_init: bank", "model.chain_init=bank is replay_buffer now"),
        ("max_overhead", "budget", "unknown key checkpoint.budget; it is checkpoint.max_overhead now"),
    ],
)
def test_an_old_name_in_a_frozen_config(tmp_path: Path, now: str, before: str, sentence: str) -> None:
    text = to_yaml(compose(TINY))
    assert now in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(now, before), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).endswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_preset_that_has_another_name_now() -> None:
    with pytest.raises(UserError) as caught:
        compose(["model=transport"])
    assert str(caught.value) == "there is no model=transport; it is model=ggcn now"
    compose(list(RENAMED_PRESETS.values()))


def test_a_renamed_preset_in_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    experiment = "# @package _global_\ndefaults:\n  - override /model: transport\nrun: mine\n"
    (tmp_path / "experiment/mine.yaml").write_text(experiment, encoding="utf-8")
    monkeypatch.setenv("GGCN_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match="there is no model=transport; it is model=ggcn now"):
        compose(["experiment=mine"])


def test_new_names_exist_and_old_ones_are_gone() -> None:
    known = [*key_types(), *sections()]
    assert set(RENAMED.values()) <= set(known)
    assert set(RENAMED).isdisjoint(known)
    assert set(RENAMED_VALUES) <= set(known)
