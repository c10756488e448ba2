"""What Hydra and OmegaConf complain of, in one sentence."""

import re
from typing import TYPE_CHECKING

from yaml import YAMLError

from ggcn.config.keys import key_types, sections, unknown
from ggcn.config.renamed import no_preset

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException


def missing_choice(error: "MissingConfigException") -> str:
    """The sentence about a choice that no folder of configs has."""
    return no_preset(str(error.missing_cfg_file).replace("/", "="), error.options or [])


def sentence(error: BaseException) -> str:
    """One sentence from the innermost error of Hydra or OmegaConf."""
    while (inner := error.__cause__ or error.__context__) and not getattr(error, "full_key", None):
        error = inner
    if isinstance(error, YAMLError):
        return " ".join(str(error).split())
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
    if key not in key_types() and key not in sections() and "[" not in key:
        return unknown(key)
    shell = r"; for a variable of the shell write \${NAME}" if "nterpolation" in first else ""
    return f"{key}: {first}{shell}"
