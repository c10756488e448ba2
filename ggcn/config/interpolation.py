"""Interpolations, `~` and environment variables in a config: what is replaced where, and what stays as it was typed.

Texts of the machine, such as paths, keep their interpolations in files, so that no secret of the environment is
written and each process resolves them by what it sees. All others are resolved once, when a run is composed.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial, reduce
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ggcn import paths
from ggcn.config.composition_errors import sentence
from ggcn.config.keys import flatten, flatten_mapping, key_types
from ggcn.config.schema import Config
from ggcn.errors import UserError

MACHINE = ("data.", "cluster.", "paths.", "log.", "checkpoint.", "evaluation.")
"""sections whose texts stay as they are typed in a file; the others decide a run's numbers, which must not depend on
the environment that a rank meets"""
PATHS = (
    "paths.runs",
    "data.shards",
    "data.mixture",
    "data.holdout",
    "data.cache_dir",
    "checkpoint.copy_to",
    "evaluation.cache",
    "evaluation.weights",
)
NAME = re.compile(r"(?<!\\)\$\{(\w+)\}")


def typed_config(tree: Any) -> Config:
    """The config in a tree of OmegaConf: interpolations in the machine's texts as they are, all others resolved."""
    raw = flatten_mapping(OmegaConf.to_container(tree))
    kept = {key: raw[key] for key in _machine_texts() if _interpolated(raw.get(key))}
    tree = copy.deepcopy(tree)
    for key, text in kept.items():
        OmegaConf.update(tree, key, type(text)(), merge=False)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    for key, text in kept.items():
        _set(config, key, text)
    return config


def resolved(config: Config, strict: bool = False) -> Config:
    """The config with interpolations, `~` and environment variables replaced as this process sees them.

    What was replaced stands in `typed`, for files. Raises UserError for an interpolation that cannot be resolved, a
    variable in paths.runs that is not set and, if `strict`, one in any path; else such a variable stays as it is,
    since it may be set only where the ranks run.
    """
    config = unresolved(config)
    here = _resolved_texts(config) | {"data.mixture": config.data.mixture}
    for key in PATHS:
        expanded = partial(_expanded, key, strict=key != "paths.runs" if strict else key == "paths.runs")
        value = here[key]
        here[key] = _merged(value, expanded) if isinstance(value, dict) else expanded(value)
    for key, value in here.items():
        if value != (typed := _get(config, key)):
            config.typed[key] = typed
            _set(config, key, value)
    return config


def unresolved(config: Config) -> Config:
    """A copy of the config with its texts as they were typed."""
    config = copy.deepcopy(config)
    for key, text in config.typed.items():
        _set(config, key, text)
    config.typed = {}
    return config


def refuse_undefined(config: Config) -> None:
    """Raises UserError when a path of the config names an environment variable that this process does not have."""
    for key in PATHS:
        for text in _as_list(_get(config, key)):
            _refuse_undefined(key, text)


def refuse_interpolations(tree: Any) -> None:
    """Raises ValueError when a frozen config has an interpolation outside the machine's texts."""
    for key, value in flatten_mapping(OmegaConf.to_container(tree)).items():
        if _interpolated(value) and key not in _machine_texts():
            raise ValueError(f"{key} holds an interpolation, and only texts of the machine may")


def refuse_unreadable(config: Config) -> None:
    """Raises UserError for a text that would not be read again as it was written."""
    machine = _machine_texts()
    for key, value in flatten(config).items():
        for text in _as_list(value):
            if _interpolated(text) and key not in machine and key != "data.mixture":
                raise UserError(f"{key}={text} cannot be kept in a config; give another text")


def expand_homes(config: Config) -> None:
    """Replaces `~` at the beginning of paths."""
    config.data.mixture = {_at_home(folder): weight for folder, weight in config.data.mixture.items()}
    for key in PATHS:
        if isinstance(text := _get(config, key), str):
            _set(config, key, _at_home(text))


def _at_home(path: str) -> str:
    return paths.expand_home(path) if paths.is_local(path) else path


def _machine_texts() -> list[str]:
    return [key for key, kind in key_types().items() if key.startswith(MACHINE) and kind in (str, list[str])]


def _interpolated(value: Any) -> bool:
    """Whether a text, or one anywhere in lists and mappings, has an interpolation."""
    if isinstance(value, dict):
        return any(map(_interpolated, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(_interpolated, value))
    return isinstance(value, str) and "${" in value


def _merged(mixture: dict[str, float], expanded: Callable[[str], str]) -> dict[str, float]:
    """A mixture with its folders expanded. Raises UserError where two become one, whose weight would be lost."""
    folders = {expanded(folder): weight for folder, weight in mixture.items()}
    if len(folders) < len(mixture):
        raise UserError(f"data.mixture names one folder twice: {', '.join(mixture)}; give it one weight")
    return folders


def _resolved_texts(config: Config) -> dict[str, Any]:
    """{key: text} of the machine's texts with their interpolations resolved."""
    try:
        tree = OmegaConf.structured(_shell_names(config))
        return {key: _plain(OmegaConf.select(tree, key)) for key in _machine_texts()}
    except OmegaConfBaseException as error:
        raise UserError(sentence(error)) from None


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shell_names(config: Config) -> Config:
    """The config with ${NAME} in paths escaped, but for the names of its own keys: it is an environment variable."""
    names = {entry.name for entry in fields(Config)}
    config = copy.deepcopy(config)
    for key in PATHS:
        if isinstance(text := _get(config, key), str):
            _set(
                config, key, NAME.sub(lambda match: match[0] if match[1] in names else f"\\{match[0]}", text)
            )
    return config


def _expanded(key: str, path: str, strict: bool) -> str:
    """A path with its environment variables replaced; a URL as it is."""
    if not paths.is_local(path):
        return path
    path = _at_home(path)
    if strict:
        _refuse_undefined(key, path)
    return paths.expand_variables(path)


def _refuse_undefined(key: str, path: str) -> None:
    if paths.is_local(path) and (names := paths.undefined(path)):
        raise UserError(
            f"{key}={path} needs the environment variable {names[0]}, which is not set; set it, or write \\${names[0]} "
            "for a folder of that name"
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | dict) else [value]


def _get(config: Any, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _set(config: Config, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    setattr(_get(config, section) if section else config, name, value)
