"""Sweeps: the points that overrides such as seed=1,2,3 describe, each with a run directory of its own."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ggcn.config.compose import compose
from ggcn.config.overrides import sweep_values
from ggcn.config.schema import Config
from ggcn.config.validation import validate_name
from ggcn.errors import UserError
from ggcn.redact import redact


def points(overrides: Sequence[str]) -> list[Config]:
    """One validated config per combination; run directories are RUNS/NAME/KEY-VALUE_KEY-VALUE.

    Overrides may have several values: a,b or range(1,4) or choice(a,b) or log(1e-4,1e-2,5).
    Raises UserError when there is none, when two points have one name, or for what compose() refuses.
    """
    values = [sweep_values(override) for override in overrides]
    swept = [choices for choices in values if len(choices) > 1]
    fixed = [override for override, choices in zip(overrides, values, strict=True) if len(choices) == 1]
    if not swept:
        raise UserError("--sweep needs an override with several values, such as seed=1,2,3")
    keys = [choices[0].partition("=")[0].lstrip("+") for choices in swept]
    refuse_reserved(keys)
    base = compose([*fixed, *(choices[0] for choices in swept)])
    folder = Path(base.paths.runs).resolve() / base.run
    configs = [
        named_point([*fixed, *choice], short_names(keys, choice), folder) for choice in product(*swept)
    ]
    _refuse_shared([config.run for config in configs], folder)
    return configs


def refuse_reserved(keys: Sequence[str]) -> None:
    """Raises UserError where a sweep would vary what tells its runs apart."""
    if reserved := {"run", "paths.runs"}.intersection(keys):
        raise UserError(
            f"--sweep names the runs of its points itself; give one value of {reserved.pop()}, and several of others"
        )


def named_point(overrides: Sequence[str], name: str, folder: Path) -> Config:
    """The validated config of a point whose run directory is FOLDER/NAME. Raises UserError."""
    config = compose(overrides)
    config.run, config.paths.runs = name, str(folder)
    config.typed.pop("paths.runs", None)
    validate_name(name)
    return config


def short_names(keys: Sequence[str], overrides: Sequence[str]) -> str:
    """The name of a point by the values of its overrides: KEY-VALUE_KEY-VALUE."""
    pairs = zip(_short(keys), overrides, strict=True)
    return "_".join(f"{key}-{_file_name(override)}" for key, override in pairs)


def _refuse_shared(names: list[str], folder: Path) -> None:
    """Raises UserError when two points would train in one run directory."""
    if shared := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(
            f"several points of the sweep would train in {folder / shared[0]}, whose name has letters, digits, '.', "
            "'+' and '-' of the values only; sweep values that differ in those"
        )


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of the keys, where those are all different."""
    short = [key.rpartition(".")[2] for key in keys]
    return short if len(set(short)) == len(short) else list(keys)


def _file_name(override: str) -> str:
    """The value of KEY=VALUE in characters for a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", redact(override.partition("=")[2])).strip("-") or "none"
