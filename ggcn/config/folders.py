"""Where the YAML files of configs lie: those that come with the code, and a folder of the user's own."""

import os
from pathlib import Path

from ggcn.errors import UserError

VARIABLE = "GGCN_CONFIG_DIR"
"""environment variable that names the user's folder, with files such as cluster/mysite.yaml"""


def shipped_configs() -> Path:
    """The folder configs/ that comes with the code: inside an installed package, next to it in a checkout."""
    package = Path(__file__).parent.resolve().parent  # of the folder: single files may be links to elsewhere
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def use_config_dir(folder: str) -> None:
    """Makes `folder` the user's own for this process and those that it starts."""
    os.environ[VARIABLE] = os.path.abspath(os.path.expanduser(folder))


def config_folders() -> list[Path]:
    """All folders of configs; of two files with one name that of the first counts. Raises UserError when the user's
    folder does not exist."""
    own = os.environ.get(VARIABLE)
    if not own:
        return [shipped_configs()]
    folder = Path(own).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"the folder of configs {folder} does not exist; correct --config-dir or {VARIABLE}")
    return [folder, shipped_configs()]


def groups() -> list[str]:
    """The groups of configs, from each of which a run chooses one file."""
    return sorted(path.name for path in shipped_configs().iterdir() if path.is_dir())


def options(group: str, folders: list[Path] | None = None) -> dict[str, Path]:
    """{name: file} of all that a run may choose in a group, in the order of the names; of all folders of configs
    unless some are given."""
    files: dict[str, Path] = {}
    for root in reversed(folders or config_folders()):
        folder = root / group
        files |= {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.yaml")}
    return dict(sorted(files.items()))
