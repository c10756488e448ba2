"""Every value is held against its field: what lies outside is refused in one sentence that says what is allowed."""

from functools import reduce
from math import inf, isfinite, nan
from typing import Any

import pytest

from ggcn.config.fields import Choices, Range, faults
from ggcn.config.keys import Key, keys
from ggcn.config.schema import Config
from ggcn.config.validation import validate
from ggcn.errors import UserError

RANGED = [key for key in keys().values() if isinstance(key.allowed, Range)]
CHOICES = [key for key in keys().values() if isinstance(key.allowed, Choices)]


def name(key: Key) -> str:
    return key.name


def config_with(key: str, value: Any) -> Config:
    config = Config()
    section, _, field = key.rpartition(".")
    setattr(reduce(getattr, section.split("."), config) if section else config, field, value)
    return config


def refusal(key: Key, value: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(config_with(key.name, value))
    return str(caught.value)


def outside(limits: Range) -> list[float]:
    """A value below the range, one above where there is an end, and one that is no number."""
    below = limits.low - 1 if limits.ends[0] == "[" else limits.low
    above = [limits.high + 1] if isfinite(limits.high) else []
    return [below, *above, nan]


@pytest.mark.parametrize("key", RANGED, ids=name)
def test_a_number_outside_its_range_is_refused(key: Key) -> None:
    assert isinstance(key.allowed, Range)
    for value in outside(key.allowed):
        if isinstance(key.default, list):
            assert refusal(key, [value]) == f"{key.name}={[value]} must have entries in {key.allowed}"
            refusal(key, [*key.default, value])
        else:
            assert refusal(key, value) == f"{key.name}={value} must lie in {key.allowed}"


@pytest.mark.parametrize("key", RANGED, ids=name)
def test_the_ends_of_a_range_belong_to_it_as_its_brackets_say(key: Key) -> None:
    limits = key.allowed
    assert isinstance(limits, Range)
    assert (limits.low in limits) == str(limits).startswith("[")
    assert (limits.high in limits) == str(limits).endswith("]")


@pytest.mark.parametrize("key", CHOICES, ids=name)
def test_a_value_that_is_no_choice_is_refused_with_all_choices(key: Key) -> None:
    assert isinstance(key.allowed, Choices)
    assert refusal(key, "nosuch") == f"{key.name}=nosuch is none of {key.allowed}"
    for value in key.allowed.values:
        assert not list(faults(config_with(key.name, value)))


def test_a_refused_value_that_one_might_expect_comes_with_the_reason() -> None:
    assert "loss scaling does not reach into chains; take bf16" in refusal(keys()["engine.precision"], "fp16")
    assert refusal(keys()["model.chain_init"], "bank") == "model.chain_init=bank is replay_buffer now"


def test_defaults_are_allowed() -> None:
    assert not list(faults(Config()))


def test_no_value_is_allowed_where_there_may_be_none() -> None:
    for key in RANGED:
        if key.default is None:
            assert not list(faults(config_with(key.name, None)))


def test_infinity_is_a_number_of_a_range_that_includes_it() -> None:
    assert not list(faults(config_with("model.sigma", inf)))
    assert list(faults(config_with("model.chain.step_size", [inf])))


def test_every_key_says_what_it_means() -> None:
    assert [key.name for key in keys().values() if len(key.doc) < 10] == []
