"""Where the YAML files of configs lie."""

from pathlib import Path


def shipped_configs() -> Path:
    """The folder configs/ that comes with the code."""
    return Path(__file__).resolve().parents[2] / "configs"
