"""Where the YAML files of configs lie."""

from pathlib import Path


def shipped_configs() -> Path:
    """The folder configs/ that comes with the code: inside an installed package, next to it in a checkout."""
    package = Path(__file__).parent.resolve().parent  # of the folder: single files may be links to elsewhere
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
