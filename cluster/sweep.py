"""Sweeps: the points that overrides such as seed=1,2,3 describe, each with a run directory of its own."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ggcn.compose import compose
from ggcn.config import Config
from ggcn.errors import UserError


def points(words: Sequence[str]) -> list[Config]:
    """One validated config per combination; run directories are RUNS/NAME/KEY-VALUE_KEY-VALUE.

    Words are Hydra overrides, those with several values (a,b or range(1,4) or choice(a,b)) are swept.
    Raises UserError when none of them is, when two points have one name, or for what compose() refuses.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise UserError(str(error).splitlines()[0]) from None
    swept = [override for override in overrides if override.is_sweep_override()]
    fixed = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    if not swept:
        raise UserError("--sweep needs an override with several values, such as seed=1,2,3")
    keys = _short([override.key_or_group for override in swept])
    base = compose([*fixed, *(next(iter(_values(override))) for override in swept)])
    folder = Path(base.paths.runs).resolve() / base.run
    found = []
    for choice in product(*(list(_values(override)) for override in swept)):
        name = "_".join(f"{key}-{_plain(word)}" for key, word in zip(keys, choice, strict=True))
        found.append(compose([*fixed, *choice, f"run='{name}'", f"paths.runs='{folder}'"]))
    _refuse_shared([config.run for config in found], folder)
    return found


def _refuse_shared(names: list[str], folder: Path) -> None:
    """Raises UserError when two points would train in one run directory."""
    if shared := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(
            f"several points of the sweep would be {folder / shared[0]}, whose name has letters, digits, '.', '+' "
            "and '-' of the values only; sweep values that differ in those"
        )


def _values(override: Override) -> list[str]:
    """KEY=VALUE for each of an override's values."""
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _short(keys: list[str]) -> list[str]:
    """The keys' last words, where those are all different."""
    short = [key.rpartition(".")[2] for key in keys]
    return short if len(set(short)) == len(short) else keys


def _plain(word: str) -> str:
    """The value of KEY=VALUE in letters that a folder's name can have."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", word.partition("=")[2]).strip("-") or "none"
