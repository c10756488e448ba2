"""Every key of a config by its dotted name, with what the schema says about it."""

import ast
import difflib
import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from ggcn.config.fields import Choices, Range
from ggcn.config.folders import groups
from ggcn.config.renamed import RENAMED
from ggcn.config.schema import Config


class Key(NamedTuple):
    """One key."""

    name: str
    """the dotted name, such as model.chain.steps"""
    type: Any
    default: Any
    allowed: Range | Choices | None
    doc: str
    """the text after the field, in one line"""

    @property
    def section(self) -> str:
        """The key's group, such as model.chain; empty for keys outside of groups."""
        return self.name.rpartition(".")[0]


@cache
def keys() -> dict[str, Key]:
    """{dotted name: key} of all keys, in the order of the schema."""
    return {key.name: key for key in _keys(Config(), "")}


@cache
def key_types() -> dict[str, Any]:
    """{dotted name: type} of all keys. Needs no source, unlike `keys`."""
    return dict(_types(Config, ""))


@cache
def sections() -> dict[str, str]:
    """{dotted name: doc} of all groups of keys, in the order of the schema."""
    return dict(_sections(Config, ""))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config dataclass."""
    flat: dict[str, Any] = {}
    for name, value in _entries(config):
        flat |= flatten(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: value}
    return flat


def flatten_mapping(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings, but for those that are values themselves."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        nested = isinstance(value, dict) and key not in key_types()
        flat |= flatten_mapping(value, f"{key}.") if nested else {key: value}
    return flat


def unknown(key: str) -> str:
    """The sentence about a key that does not exist."""
    if re.match(r"hydra\b", key):
        return f"{key} has no effect here; run=NAME and paths.runs=FOLDER say where a run lies"
    if new := new_name(key):
        return f"unknown key {key}; it is {new} now"
    close = difflib.get_close_matches(key, [*key_types(), *sections(), *groups()], n=1, cutoff=0.5)
    return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")


def new_name(key: str) -> str | None:
    """What a renamed key, or one inside a renamed group, is called now; None for keys that never existed."""
    if key in RENAMED:
        return RENAMED[key]
    group, _, name = key.rpartition(".")
    return f"{RENAMED[group]}.{name}" if f"{RENAMED.get(group)}.{name}" in key_types() else None


def _entries(config: Any) -> list[tuple[str, Any]]:
    """Names and values of a dataclass, or its class, but for what is no key."""
    kept = [entry.name for entry in fields(config) if not entry.metadata.get("omegaconf_ignore")]
    return [(name, getattr(config, name, None)) for name in kept]


def _types(node: type, prefix: str) -> Any:
    hints = get_type_hints(node)
    for name, _ in _entries(node):
        if is_dataclass(hints[name]):
            yield from _types(hints[name], f"{prefix}{name}.")
        else:
            yield prefix + name, hints[name]


def _sections(node: type, prefix: str) -> Any:
    hints = get_type_hints(node)
    for name, _ in _entries(node):
        if is_dataclass(hints[name]):
            yield prefix + name, inspect.getdoc(hints[name]) or ""
            yield from _sections(hints[name], f"{prefix}{name}.")


def _keys(config: Any, prefix: str) -> Any:
    docs = _docs(type(config))
    allowed = {entry.name: entry.metadata.get("allowed") for entry in fields(config)}
    for name, value in _entries(config):
        key = prefix + name
        if is_dataclass(value):
            yield from _keys(value, f"{key}.")
        else:
            yield Key(key, key_types()[key], value, allowed[name], docs.get(name, ""))


def _docs(node: type) -> dict[str, str]:
    """{field: the text that stands after it in the source} of a class."""
    body = _classes(inspect.getsourcefile(node) or "")[node.__name__].body
    return {
        entry.target.id: " ".join(text.value.value.split())
        for entry, text in pairwise(body)
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


@cache
def _classes(path: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
