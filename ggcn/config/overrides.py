"""Overrides as they stand on the command line: KEY=VALUE and GROUP=NAME, read by the type of the key.

Hydra's grammar reads numbers, lists and interpolations. Text is taken as it was typed: names such as 12e5, null
or it's, and paths with any characters, need no quotes.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from ggcn.config.folders import shipped_configs
from ggcn.config.schema import Config
from ggcn.errors import UserError

FORM = re.compile(r"(\+\+|\+|~)?([^=]*)(?:(=)(.*))?", re.DOTALL)
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
PIECE = re.compile(rf"\s*(?:{QUOTED.pattern})\s*(?=,|$)|[^,]+", re.DOTALL)
OPTIONAL = ("experiment",)
"""groups of which nothing may be chosen"""
NOTHING = "null"
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
TRUTH = ("true", "false", "yes", "no", "on", "off", "1", "0")


class Override(NamedTuple):
    """One override, taken apart."""

    word: str
    plus: bool
    """whether it began with a plus, which only new entries of data.mixture need"""
    key: str
    text: str
    """what stands after the equals sign, without blanks around it"""


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

        for key, (word, value) in self.values.items():
            try:
                OmegaConf.update(tree, key, value, merge=True, force_add=_is_mixture(key))
            except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
                raise UserError(_unlike(word, schema()[key])) from None


def parse(words: Sequence[str]) -> Parsed:
    """Reads the overrides of one run.

    Raises UserError for what is no override, an unknown key or choice, and a value that is not of the key's type.
    """
    choices: dict[str, str] = {}
    values: dict[str, tuple[str, Any]] = {}
    for override in map(split, words):
        if _is_choice(override):
            choices[override.key] = _choice(override)
            continue
        for key, value in _values(override):
            values.pop(key, None)  # the last one also comes last
            values[key] = override.word, value
    return Parsed(choices, values)


def split(word: str) -> Override:
    """Takes an override apart. Raises UserError when it is none, or its key does not exist."""
    prefix, key, equals, text = FORM.fullmatch(word).groups()  # type: ignore[union-attr]  # matches everything
    if prefix == "~":
        raise UserError(
            f"{word} cannot delete a key, for every key has a value; set it with {key or 'KEY'}=VALUE"
        )
    if not equals:
        raise UserError(f"{word!r} is no override; write KEY=VALUE, for example {_example(key)}")
    if not key or key != key.strip() or any(map(str.isspace, key)):
        raise UserError(f"{word!r} must begin with a key and =, without blanks between them")
    group, at, _ = key.partition("@")
    if at and group in groups():
        raise UserError(f"{word}: a choice has a fixed place; write {group}={text}")
    if not _is_known(key):
        raise UserError(unknown(key))
    return Override(word, bool(prefix), key, text.strip())


def sweep_values(word: str) -> list[str]:
    """An override with several values (a,b or range(1,4) or choice(a,b)) as one override for each; else itself.

    Raises UserError for what is no override.
    """
    override = split(word)
    kind = schema().get(override.key)
    if _is_choice(override) or kind is str:
        if override.text.startswith("["):
            return [word]
        inside = CHOICE.fullmatch(override.text)
        pieces = PIECE.findall(inside[1] if inside else override.text)
        return [f"{override.key}={piece.strip()}" for piece in pieces] or [word]
    if _is_mixture(override.key) or kind == list[str]:
        return [word]
    found = _hydra(override)
    if not found.is_sweep_override():
        return [word]
    return [f"{override.key}={value}" for value in found.sweep_string_iterator()]


def groups() -> list[str]:
    """The groups of configs/, from each of which a run chooses one file."""
    return sorted(path.name for path in shipped_configs().iterdir() if path.is_dir())


@cache
def schema(node: type = Config, prefix: str = "") -> dict[str, Any]:
    """{dotted key: type} of all keys."""
    flat: dict[str, Any] = {}
    for name, kind in get_type_hints(node).items():
        if name == "typed":
            continue
        flat |= schema(kind, f"{prefix}{name}.") if is_dataclass(kind) else {prefix + name: kind}  # type: ignore[arg-type]
    return flat


def unknown(key: str) -> str:
    """The sentence about a key that does not exist."""
    if re.match(r"hydra\b", key):
        return f"{key} has no effect here; run=NAME and paths.runs=FOLDER say where a run lies"
    known = [*schema(), *groups()]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")


def _example(key: str) -> str:
    known = key in schema() or key in groups()
    return f"{key}=VALUE" if known else "train.steps=1000"


def _is_known(key: str) -> bool:
    known = schema()
    return (
        key in known
        or key in groups()
        or _is_mixture(key)
        or any(name.startswith(f"{key}.") for name in known)
    )


def _is_mixture(key: str) -> bool:
    return key == "data.mixture" or key.startswith("data.mixture.")


def _is_choice(override: Override) -> bool:
    return override.key in groups() and not override.text.startswith("{")


def _choice(override: Override) -> str:
    """The file, or the list of files in brackets, that is chosen in a group."""
    group, name = override.key, _unquoted(override)
    if group in OPTIONAL and name in ("null", ""):
        return NOTHING
    names = name[1:-1].split(",") if name.startswith("[") and name.endswith("]") else [name]
    folder = shipped_configs() / group
    options = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    for one in names:
        if one.strip() not in options:
            several = "; several values need --sweep" if "," in one else ""
            raise UserError(f"there is no {group}={one.strip()}; choose one of {', '.join(options)}{several}")
    return name


def _values(override: Override) -> Iterator[tuple[str, Any]]:
    """The keys that an override sets and their values: one, or those in a {KEY: VALUE, ...} for a group of keys."""
    kind = schema().get(override.key)
    if _is_mixture(override.key):
        yield "data.mixture", _mixture(override)
    elif kind is None:
        value = _hydra(override).value()
        if not isinstance(value, dict):
            inside = next(name for name in schema() if name.startswith(f"{override.key}."))
            raise UserError(
                f"{override.word}: {override.key} is a group of keys, such as {inside}; set one of those"
            )
        for key, inner in _flat(value, override.key):
            yield key, _typed_inside(override, key, inner)
    else:
        yield override.key, _value(override, kind)


def _flat(value: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        key = f"{prefix}.{name}"
        if isinstance(inner, dict) and key not in schema():
            yield from _flat(inner, key)
        elif key in schema():
            yield key, inner
        else:
            raise UserError(unknown(key))


def _typed_inside(override: Override, key: str, value: Any) -> Any:
    if schema()[key] in (str, list[str], dict[str, float]):
        raise UserError(
            f"{override.word}: set {key} by an override of its own, which takes text as it is typed"
        )
    return value


def _value(override: Override, kind: Any) -> Any:
    """The value of a key of this type."""
    if kind is str:
        return _text(override, _unquoted(override))
    if kind == list[str]:
        return [_text(override, entry) for entry in _texts(override)]
    if "${" in override.text:
        return override.text
    found = _hydra(override)
    if found.is_sweep_override():
        raise UserError(f"{override.word} has several values; run all of them with --sweep, or give one")
    value = found.value()
    if kind is bool and str(value).lower() not in TRUTH:
        raise UserError(_unlike(override.word, kind))
    return value


def _text(override: Override, value: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value):
        raise UserError(
            f"{override.key}={value!r} holds a control character, such as a line break; leave it out"
        )
    return value


def _unquoted(override: Override) -> str:
    """The text of a value, without the quotes that may enclose all of it."""
    from hydra.core.override_parser.types import QuotedString

    if not QUOTED.fullmatch(override.text):
        return override.text
    found = _hydra(override)._value
    return found.text if isinstance(found, QuotedString) else override.text


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
            f"{override.word} must be a list of texts, as in {override.key}=['first text','second text']"
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
            f"{override.word}: {folder or weight!r} needs a number as its weight, as in +data.mixture={{shards/a: 3}}"
        ) from None


def _yaml(text: str) -> Any:
    """The lists and mappings of a text in YAML, every scalar as it is typed; None for what is no YAML."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # makes nothing but text
    except yaml.YAMLError:
        return None


def _hydra(override: Override) -> Any:
    """The override as Hydra's grammar reads it."""
    from hydra.errors import HydraException

    try:
        return _parsed(override)
    except HydraException:
        raise UserError(_unlike(override.word, schema().get(override.key))) from None


def _parsed(override: Override) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"{override.key}={override.text}")


def _unlike(word: str, kind: Any) -> str:
    """The sentence about a value that is not of its key's type."""
    if kind in (str, list[str]):
        return rf"{word} holds an incomplete interpolation; write \${{ for these two characters"
    optional = NoneType in get_args(kind)
    if optional:
        kind = next(one for one in get_args(kind) if one is not NoneType)
    (inner, *_) = get_args(kind) or (None,)
    listed = f"a list, as in [{'8,32' if inner is int else '0.1,0.2'}]" if get_origin(kind) is list else None
    form = listed or KINDS.get(kind, "a value in Hydra's grammar")
    return f"{word} must be {form}{', or null' if optional else ''}"
