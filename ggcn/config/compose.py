"""From YAML groups and command-line overrides to a Config, and back to a file."""

import copy
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ggcn import files, redact
from ggcn.config import overrides
from ggcn.config.composition_errors import missing_choice, sentence
from ggcn.config.folders import config_folders
from ggcn.config.grids import fill_defaults, ladder
from ggcn.config.interpolation import (
    expand_homes,
    refuse_interpolations,
    refuse_unreadable,
    resolved,
    typed_config,
    unresolved,
)
from ggcn.config.schema import Config
from ggcn.config.validation import validate
from ggcn.errors import UserError

PUBLIC = ("run", "seed", "lanes", "model", "data", "train", "engine")
"""what reports show and exported files hold"""
LONGEST = 1_000_000
"""characters of a frozen config"""


def compose(arguments: Sequence[str]) -> Config:
    """The run that configs/train.yaml and the overrides in `arguments` (see ggcn/config/overrides.py) describe,
    validated.

    Raises UserError in one sentence for an unknown or ill-typed key, an unknown choice, values that do not go
    together, or an environment variable that is not set.
    """
    from hydra.errors import (  # Hydra: which a trained model does without
        HydraException,
        MissingConfigException,
    )

    parsed = overrides.parse(arguments)
    try:
        tree = _chosen_files(parsed)
        parsed.apply(tree)
        config = typed_config(tree)
    except MissingConfigException as error:
        raise UserError(missing_choice(error)) from None
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(sentence(error)) from None
    expand_homes(config)
    _fit_grids(config, parsed)
    refuse_unreadable(config)
    return resolved(_checked(config))


def _chosen_files(parsed: overrides.Parsed) -> Any:
    """train.yaml merged with the chosen file of each group, from the user's folder where it has that file."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    with ExitStack() as stack:
        *own, shipped = config_folders()
        folder = str(shipped)
        if own:  # Hydra's searchpath would look into it after the shipped ones
            folder = stack.enter_context(TemporaryDirectory(prefix="ggcn-configs-"))
            for source in (shipped, *own):
                shutil.copytree(source, folder, dirs_exist_ok=True)
        stack.enter_context(initialize_config_dir(version_base=None, config_dir=folder))
        return hydra_compose("train", overrides=parsed.chosen)


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
        refuse_interpolations(tree)
        return _checked(typed_config(tree))
    except (OmegaConfBaseException, ValueError, TypeError, YAMLError, RecursionError) as error:
        raise UserError(f"{path} does not fit this version: {sentence(error)}") from None


def _refuse_aliases(text: str) -> None:
    """Raises ValueError for a text that no launcher froze: aliases can make gigabytes of some bytes."""
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("it holds a YAML alias")


def public(config: Config) -> str:
    """What others may know of a config, as YAML: the sections that say what was computed, without credentials."""
    config = copy.deepcopy(unresolved(config))
    data = config.data
    data.shards, data.cache_dir, data.allow_pipe = redact.shard_folder(data.shards), "", False
    data.holdout = redact.shard_folder(data.holdout)
    config.train.init_from = Path(redact.shard_folder(config.train.init_from)).name
    shown = list(map(redact.shard_folder, data.mixture))
    names = [name if shown.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(shown, 1)]
    data.mixture = dict(zip(names, data.mixture.values(), strict=True))
    tree = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(tree, dict)
    return OmegaConf.to_yaml(OmegaConf.create({name: tree[name] for name in PUBLIC}))


def to_yaml(config: Config) -> str:
    """The config as YAML, every key written out and texts as they were typed."""
    return OmegaConf.to_yaml(OmegaConf.structured(unresolved(config)))


def _checked(config: Config) -> Config:
    fill_defaults(config)
    validate(config)
    return config


def _fit_grids(config: Config, parsed: overrides.Parsed) -> None:
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
