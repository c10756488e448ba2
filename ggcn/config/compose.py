"""From YAML groups and command-line overrides to a Config, and back to a file."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ggcn import files, paths, redact
from ggcn.config import overrides as words
from ggcn.config.folders import shipped_configs
from ggcn.config.grids import fill_defaults, ladder
from ggcn.config.overrides import schema, unknown
from ggcn.config.schema import Config
from ggcn.config.validation import validate
from ggcn.errors import UserError

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException

MACHINE = ("data.", "cluster.", "paths.", "log.", "checkpoint.", "evaluation.")
"""sections whose texts stay as they are typed in a file; the others decide a run's numbers, which must not depend on
the environment that a rank meets"""
PUBLIC = ("run", "seed", "lanes", "model", "data", "train", "engine")
"""what reports show and exported files hold"""
PATHS = (
    "paths.runs",
    "data.shards",
    "data.mixture",
    "data.holdout",
    "data.cache_dir",
    "evaluation.cache",
    "evaluation.weights",
)
LONGEST = 1_000_000
"""characters of a frozen config"""
NAME = re.compile(r"(?<!\\)\$\{(\w+)\}")


def compose(overrides: Sequence[str]) -> Config:
    """The run that configs/train.yaml and `overrides` (see ggcn/config/overrides.py) describe, validated.

    Raises UserError in one sentence for an unknown or ill-typed key, an unknown choice, values that do not go
    together, or an environment variable that is not set.
    """
    from hydra import compose as hydra_compose  # which a trained model does without
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException, MissingConfigException

    parsed = words.parse(overrides)
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(version_base=None, config_dir=str(shipped_configs())):
            tree = hydra_compose("train", overrides=parsed.chosen)
        parsed.apply(tree)
        typed = _typed(tree)
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error)) from None
    _expand_homes(typed)
    _fit_grids(typed, parsed)
    _refuse_unreadable(typed)
    return resolved(_checked(typed))


def load(path: Path) -> Config:
    """The frozen config of a run, its texts as they were typed (see `resolved`).

    Raises UserError when there is none or it does not fit this version.
    """
    try:
        text = files.read_text(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = f"it holds no {path.name}" if missing else f"{path.name}: {error.strerror}"
        raise UserError(f"{path.parent} is no run directory ({why})") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """The config that `text`, YAML from `path`, holds; raises UserError when it does not fit this version.

    It may come from anybody: nothing of this process's environment is put into it.
    """
    try:
        _refuse_aliases(text)
        tree = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text))
        _refuse_interpolations(tree)
        return _checked(_typed(tree))
    except (OmegaConfBaseException, ValueError, TypeError, YAMLError, RecursionError) as error:
        raise UserError(f"{path} does not fit this version: {_sentence(error)}") from None


def _refuse_aliases(text: str) -> None:
    """Raises ValueError for a text that no launcher froze: aliases can make gigabytes of some bytes."""
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("it holds a YAML alias")


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


def public(config: Config) -> str:
    """What others may know of a config, as YAML: the sections that say what was computed, without credentials."""
    config = copy.deepcopy(unresolved(config))
    data = config.data
    data.shards, data.cache_dir, data.allow_pipe = redact.shard_folder(data.shards), "", False
    data.holdout = redact.shard_folder(data.holdout)
    shown = list(map(redact.shard_folder, data.mixture))
    names = [name if shown.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(shown, 1)]
    data.mixture = dict(zip(names, data.mixture.values(), strict=True))
    tree = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(tree, dict)
    return OmegaConf.to_yaml(OmegaConf.create({name: tree[name] for name in PUBLIC}))


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


def to_yaml(config: Config) -> str:
    """The config as YAML, every key written out and texts as they were typed."""
    return OmegaConf.to_yaml(OmegaConf.structured(unresolved(config)))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config dataclass."""
    flat: dict[str, Any] = {}
    for entry in fields(config):
        if entry.metadata.get("omegaconf_ignore"):
            continue
        value = getattr(config, entry.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{entry.name}.")
        else:
            flat[prefix + entry.name] = value
    return flat


def _checked(config: Config) -> Config:
    fill_defaults(config)
    validate(config)
    return config


def _typed(tree: Any) -> Config:
    """The config in a tree of OmegaConf: interpolations in the machine's texts as they are, all others resolved."""
    raw = _leaves(OmegaConf.to_container(tree))
    kept = {key: raw[key] for key in _machine_texts() if _interpolated(raw.get(key))}
    tree = copy.deepcopy(tree)
    for key, text in kept.items():
        OmegaConf.update(tree, key, type(text)(), merge=False)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    for key, text in kept.items():
        _set(config, key, text)
    return config


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings, but for those that are values themselves."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        flat |= _leaves(value, f"{key}.") if isinstance(value, dict) and key not in schema() else {key: value}
    return flat


def _machine_texts() -> list[str]:
    return [key for key, kind in schema().items() if key.startswith(MACHINE) and kind in (str, list[str])]


def _interpolated(value: Any) -> bool:
    """Whether a text, or one anywhere in lists and mappings, has an interpolation."""
    if isinstance(value, dict):
        return any(map(_interpolated, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(_interpolated, value))
    return isinstance(value, str) and "${" in value


def _refuse_interpolations(tree: Any) -> None:
    """Raises ValueError when a frozen config has an interpolation outside the machine's texts."""
    for key, value in _leaves(OmegaConf.to_container(tree)).items():
        if _interpolated(value) and key not in _machine_texts():
            raise ValueError(f"{key} holds an interpolation, and only texts of the machine may")


def _refuse_unreadable(config: Config) -> None:
    """Raises UserError for a text that would not be read again as it was written."""
    machine = _machine_texts()
    for key, value in flatten(config).items():
        for text in _as_list(value):
            if _interpolated(text) and key not in machine and key != "data.mixture":
                raise UserError(f"{key}={text} cannot be kept in a config; give another text")


def _fit_grids(config: Config, parsed: words.Parsed) -> None:
    """Gives the model grids for data.size, unless model.grids is an override itself."""
    model, data = config.model, config.data
    data.check_ranges()
    given = "model.grids" in parsed.values
    if given and model.grids:
        if "data.size" in parsed.values and data.size != model.grids[-1]:
            raise UserError(
                f"model.grids={model.grids} ends at another size than data.size={data.size}; give one"
            )
        data.size = model.grids[-1]
    elif data.size and model.grids and data.size != model.grids[-1]:
        model.grids = ladder(model.grids, data.size)


def _expand_homes(config: Config) -> None:
    """Replaces `~` at the beginning of paths."""
    config.data.mixture = {_at_home(folder): weight for folder, weight in config.data.mixture.items()}
    for key in PATHS:
        if isinstance(text := _get(config, key), str):
            _set(config, key, _at_home(text))


def _at_home(path: str) -> str:
    return paths.expand_home(path) if paths.is_local(path) else path


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
        raise UserError(_sentence(error)) from None


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shell_names(config: Config) -> Config:
    """The config with ${NAME} in paths escaped, but for the names of its own keys: it is an environment variable."""
    names = {entry.name for entry in fields(Config)}
    config = copy.deepcopy(config)
    for key in PATHS:
        if isinstance(text := _get(config, key), str):
            _set(
                config, key, NAME.sub(lambda found: found[0] if found[1] in names else f"\\{found[0]}", text)
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


def _missing_choice(error: "MissingConfigException") -> str:
    choices = ", ".join(error.options or [])
    name = str(error.missing_cfg_file).replace("/", "=")
    return f"there is no {name}" + (f"; choose one of {choices}" if choices else "")


def _sentence(error: BaseException) -> str:
    """One sentence from the innermost error of Hydra or OmegaConf."""
    while error.__cause__ is not None and not getattr(error, "full_key", None):
        error = error.__cause__
    first = str(error).strip().splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    if not key:
        return first
    if key.startswith("data.mixture."):
        return "data.mixture takes new names with a plus: +data.mixture={FOLDER: WEIGHT, FOLDER: WEIGHT}"
    if "missing mandatory value" in first:
        return f"{key}=??? cannot be kept in a config, where it stands for nothing; give another text"
    if missing := re.search(r"Environment variable '(.+?)' not found", first):
        return f"{key} needs the environment variable {missing[1]}, which is not set"
    if (
        "could not be converted" in first and "interpolation" in first
    ):  # without the value, which may be secret
        return f"{key}: what it refers to is of another type"
    if not any(name == key or name.startswith(f"{key}.") for name in schema()) and "[" not in key:
        return unknown(key)
    shell = r"; for a variable of the shell write \${NAME}" if "nterpolation" in first else ""
    return f"{key}: {first}{shell}"
