"""From YAML groups and command-line overrides to a Config, and back to a file."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ggcn.checks import validate
from ggcn.config import Config, resolve
from ggcn.errors import UserError

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def compose(overrides: Sequence[str]) -> Config:
    """The run that configs/train.yaml and `overrides` (Hydra's grammar) describe, validated.

    Raises UserError in one sentence for an unknown or ill-typed key, an unknown choice, or values that do not
    go together.
    """
    from hydra import compose as hydra_compose  # which a trained model does without
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException, MissingConfigException

    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
            return _checked(hydra_compose("train", overrides=list(overrides)))
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error)) from None


def load(path: Path) -> Config:
    """The frozen config of a run; raises UserError when there is none or it does not fit this version."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        raise UserError(f"{path.parent} is no run directory (it holds no {path.name})") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """The config that `text`, YAML from `path`, holds; raises UserError when it does not fit this version."""
    try:
        return _checked(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text)))
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        raise UserError(f"{path} does not fit this version: {_sentence(error)}") from None


def to_yaml(config: Config) -> str:
    """The config as YAML, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config dataclass."""
    flat: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{entry.name}.")
        else:
            flat[prefix + entry.name] = value
    return flat


def _checked(tree: Any) -> Config:
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    resolve(config)
    validate(config)
    return config


def _missing_choice(error: "MissingConfigException") -> str:
    choices = ", ".join(error.options or [])
    name = str(error.missing_cfg_file).replace("/", "=")
    return f"there is no {name}" + (f"; choose one of {choices}" if choices else "")


def _sentence(error: BaseException) -> str:
    """One sentence from the innermost error of Hydra or OmegaConf."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = str(error).strip().splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    if not key:
        return first
    if key.startswith("data.mixture."):
        return "data.mixture takes new names with a plus: +data.mixture={FOLDER: WEIGHT, FOLDER: WEIGHT}"
    known = list(flatten(Config()))
    if not any(name == key or name.startswith(f"{key}.") for name in known):
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")
    return f"{key}: {first}"
