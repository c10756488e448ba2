"""The values of overrides, read by the type of their key.

Hydra's grammar reads numbers, lists and interpolations; text is taken as it was typed.
"""

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from ggcn.config.keys import key_types, unknown
from ggcn.errors import UserError

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
RANGE = re.compile(r"(log|uniform)\(")
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
TRUTH = ("true", "false", "yes", "no", "on", "off", "1", "0")


class Override(NamedTuple):
    """One override, taken apart."""

    argument: str
    """all of it, as it was typed"""
    plus: bool
    """whether it began with a plus, which only new entries of data.mixture need"""
    key: str
    text: str
    """what stands after the equals sign, without blanks around it"""


def key_values(override: Override) -> Iterator[tuple[str, Any]]:
    """The keys that an override sets and their values: one, or those in a {KEY: VALUE, ...} for a group of keys."""
    kind = key_types().get(override.key)
    if is_mixture(override.key):
        yield "data.mixture", _mixture(override)
    elif kind is None:
        value = parsed_by_hydra(override).value()
        if not isinstance(value, dict):
            inside = next(name for name in key_types() if name.startswith(f"{override.key}."))
            raise UserError(
                f"{override.argument}: {override.key} is a group of keys, such as {inside}; set one of those"
            )
        for key, inner in _flat(value, override.key):
            yield key, _typed_inside(override, key, inner)
    else:
        yield override.key, _value(override, kind)


def is_mixture(key: str) -> bool:
    """Whether a key is data.mixture or one of its folders."""
    return key == "data.mixture" or key.startswith("data.mixture.")


def unquoted(override: Override) -> str:
    """The text of a value, without the quotes that may enclose all of it."""
    from hydra.core.override_parser.types import QuotedString

    if not QUOTED.fullmatch(override.text):
        return override.text
    parsed = parsed_by_hydra(override)._value
    return parsed.text if isinstance(parsed, QuotedString) else override.text


def parsed_by_hydra(override: Override) -> Any:
    """The override as Hydra's grammar reads it."""
    from hydra.errors import HydraException

    try:
        return _parsed(override)
    except HydraException:
        raise UserError(wrong_type(override.argument, key_types().get(override.key))) from None


def _parsed(override: Override) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"{override.key}={override.text}")


def wrong_type(argument: str, kind: Any) -> str:
    """The sentence about a value that is not of its key's type."""
    if kind in (str, list[str]):
        return rf"{argument} holds an incomplete interpolation; write \${{ for these two characters"
    optional = NoneType in get_args(kind)
    if optional:
        kind = next(one for one in get_args(kind) if one is not NoneType)
    (inner, *_) = get_args(kind) or (None,)
    listed = f"a list, as in [{'8,32' if inner is int else '0.1,0.2'}]" if get_origin(kind) is list else None
    form = listed or KINDS.get(kind, "a value in Hydra's grammar")
    return f"{argument} must be {form}{', or null' if optional else ''}"


def _flat(value: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        key = f"{prefix}.{name}"
        if isinstance(inner, dict) and key not in key_types():
            yield from _flat(inner, key)
        elif key in key_types():
            yield key, inner
        else:
            raise UserError(unknown(key))


def _typed_inside(override: Override, key: str, value: Any) -> Any:
    if key_types()[key] in (str, list[str], dict[str, float]):
        raise UserError(
            f"{override.argument}: set {key} by an override of its own, which takes text as it is typed"
        )
    return value


def _value(override: Override, kind: Any) -> Any:
    """The value of a key of this type."""
    if kind is str:
        return _text(override, unquoted(override))
    if kind == list[str]:
        return [_text(override, entry) for entry in _texts(override)]
    if "${" in override.text:
        return override.text
    if RANGE.match(override.text):
        raise UserError(
            f"{override.argument} is a range; draw points of it with --search N, or give one value"
        )
    parsed = parsed_by_hydra(override)
    if parsed.is_sweep_override():
        raise UserError(f"{override.argument} has several values; run all of them with --sweep, or give one")
    value = parsed.value()
    if kind is bool and str(value).lower() not in TRUTH:
        raise UserError(wrong_type(override.argument, kind))
    return value


def _text(override: Override, value: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value):
        raise UserError(
            f"{override.key}={value!r} holds a control character, such as a line break; leave it out"
        )
    return value


def _texts(override: Override) -> list[str]:
    """A list of texts. Hydra reads quoted entries; YAML reads more characters without quotes, and keeps numbers as
    they are typed."""
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        entries = _parsed(override)._value
        if isinstance(entries, list) and all(isinstance(entry, str | QuotedString) for entry in entries):
            return [entry.text if isinstance(entry, QuotedString) else entry for entry in entries]
    except HydraException:
        pass
    entries = _yaml(override.text)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(
            f"{override.argument} must be a list of texts, as in {override.key}=['first text','second text']"
        )
    return entries


def _mixture(override: Override) -> dict[str, float]:
    """Folders and weights, as {FOLDER: WEIGHT, ...} or as one FOLDER=WEIGHT."""
    form = "data.mixture takes new names with a plus: +data.mixture={FOLDER: WEIGHT, FOLDER: WEIGHT}"
    if not override.plus:
        raise UserError(form)
    if override.key != "data.mixture":
        pairs: Any = {override.key.removeprefix("data.mixture."): override.text}
    else:
        pairs = _yaml(override.text)
    if not isinstance(pairs, dict):
        raise UserError(form)
    return dict(_weight(override, str(folder), weight) for folder, weight in pairs.items())


def _weight(override: Override, folder: str, weight: Any) -> tuple[str, float]:
    if weight == "":  # {a:1}, which YAML takes for a name
        folder, _, weight = folder.rpartition(":")
    try:
        return _text(override, folder), float(weight)
    except (TypeError, ValueError):
        raise UserError(
            f"{override.argument}: {folder or weight!r} needs a number as its weight, as in "
            "+data.mixture={shards/a: 3}"
        ) from None


def _yaml(text: str) -> Any:
    """The lists and mappings of a text in YAML, every scalar as it is typed; None for what is no YAML."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 (makes nothing but text)
    except yaml.YAMLError:
        return None
