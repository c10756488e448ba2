"""Overrides as they stand on the command line: KEY=VALUE and GROUP=NAME, read by the type of the key.

Hydra's grammar reads numbers, lists and interpolations. Text is taken as it was typed: names such as 12e5, null
or it's, and paths with any characters, need no quotes.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ggcn.config.folders import groups, options
from ggcn.config.keys import key_types, sections, unknown
from ggcn.config.override_values import (
    QUOTED,
    Override,
    is_mixture,
    key_values,
    parsed_by_hydra,
    unquoted,
    wrong_type,
)
from ggcn.config.ranges import range_of
from ggcn.config.renamed import no_preset
from ggcn.errors import UserError

FORM = re.compile(r"(\+\+|\+|~)?([^=]*)(?:(=)(.*))?", re.DOTALL)
CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
PIECE = re.compile(rf"\s*(?:{QUOTED.pattern})\s*(?=,|$)|[^,]+", re.DOTALL)
OPTIONAL = ("experiment",)
"""groups of which nothing may be chosen"""
NOTHING = "null"


class Parsed(NamedTuple):
    """What all overrides of a command line say; of several for one key the last counts."""

    choices: dict[str, str]
    """{group: name of a file in its folder, or a list of names in brackets}"""
    values: dict[str, tuple[str, Any]]
    """{dotted key: (the override, the value)}"""

    @property
    def chosen(self) -> list[str]:
        """The choices as overrides for Hydra."""
        return [f"{group}={name}" for group, name in self.choices.items() if name != NOTHING]

    def apply(self, tree: Any) -> None:
        """Sets the values in a tree of OmegaConf; raises UserError for one that is not of its key's type."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        for key, (argument, value) in self.values.items():
            try:
                OmegaConf.update(tree, key, value, merge=True, force_add=is_mixture(key))
            except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
                raise UserError(wrong_type(argument, key_types()[key])) from None


def parse(arguments: Sequence[str]) -> Parsed:
    """Reads the overrides of one run.

    Raises UserError for what is no override, an unknown key or choice, and a value that is not of the key's type.
    """
    choices: dict[str, str] = {}
    values: dict[str, tuple[str, Any]] = {}
    for override in map(split, arguments):
        if _is_choice(override):
            choices[override.key] = _choice(override)
            continue
        for key, value in key_values(override):
            values.pop(key, None)  # the last one also comes last
            values[key] = override.argument, value
    return Parsed(choices, values)


def split(argument: str) -> Override:
    """Takes an override apart. Raises UserError when it is none, or its key does not exist."""
    prefix, key, equals, text = FORM.fullmatch(argument).groups()  # type: ignore[union-attr]  # matches everything
    if prefix == "~":
        raise UserError(
            f"{argument} cannot delete a key, for every key has a value; set it with {key or 'KEY'}=VALUE"
        )
    if not equals:
        raise UserError(f"{argument!r} is no override; write KEY=VALUE, for example {_example(key)}")
    if not key or key != key.strip() or any(map(str.isspace, key)):
        raise UserError(f"{argument!r} must begin with a key and =, without blanks between them")
    group, at, _ = key.partition("@")
    if at and group in groups():
        raise UserError(f"{argument}: a choice has a fixed place; write {group}={text}")
    if not _is_known(key):
        raise UserError(unknown(key))
    return Override(argument, bool(prefix), key, text.strip())


def sweep_values(argument: str) -> list[str]:
    """An override with several values (a,b or range(1,4) or choice(a,b) or log(1e-4,1e-2,5)) as one override for each;
    else itself.

    Raises UserError for what is no override, and for a range of which nobody says how many values.
    """
    override = split(argument)
    kind = key_types().get(override.key)
    if _is_choice(override) or kind is str:
        if override.text.startswith("["):
            return [argument]
        inside = CHOICE.fullmatch(override.text)
        pieces = PIECE.findall(inside[1] if inside else override.text)
        return [f"{override.key}={piece.strip()}" for piece in pieces] or [argument]
    if is_mixture(override.key) or kind == list[str]:
        return [argument]
    if span := range_of(override):
        if span.size is None:
            raise UserError(
                f"{argument} is a range; draw points of it with --search N, or say how many values as in "
                f"{argument[:-1]},5)"
            )
        return [f"{override.key}={value}" for value in span.values()]
    parsed = parsed_by_hydra(override)
    if not parsed.is_sweep_override():
        return [argument]
    return [f"{override.key}={value}" for value in parsed.sweep_string_iterator()]


def _example(key: str) -> str:
    known = key in key_types() or key in groups()
    return f"{key}=VALUE" if known else "train.steps=1000"


def _is_known(key: str) -> bool:
    return key in key_types() or key in sections() or key in groups() or is_mixture(key)


def _is_choice(override: Override) -> bool:
    return override.key in groups() and not override.text.startswith("{")


def _choice(override: Override) -> str:
    """The file, or the list of files in brackets, that is chosen in a group."""
    group, name = override.key, unquoted(override)
    if group in OPTIONAL and name in ("null", ""):
        return NOTHING
    names = name[1:-1].split(",") if name.startswith("[") and name.endswith("]") else [name]
    for one in names:
        if one.strip() not in (known := options(group)):
            several = "; several values need --sweep" if "," in one else ""
            raise UserError(no_preset(f"{group}={one.strip()}", list(known)) + several)
    return name
