"""The user's own modules that a run's networks are built from (model.energy.kind=MODULE:CLASS), copied into
runs/NAME/own, from where its ranks import them: so a job that waits in a queue computes what was submitted. Imports no
torch."""

import hashlib
import logging
import os
import shutil
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ggcn.config.fields import is_own
from ggcn.config.schema import Config
from ggcn.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "own"
INTERACTIVE = "__main__"
"""the module of a notebook's or a script's own classes, which is in no file that could be copied"""


def kinds(config: Config) -> dict[str, str]:
    """{config key: MODULE:CLASS} of the networks that are the user's own."""
    chosen = {
        "model.energy.kind": config.model.energy.kind,
        "model.upsampler.kind": config.model.upsampler.kind,
    }
    return {key: kind for key, kind in chosen.items() if is_own(kind)}


def save(config: Config, run: Path) -> None:
    """Copies the modules or packages that a config's own networks come from to RUN/own, unless they are installed.
    A module that is not found keeps its earlier copy. Raises UserError when there is none."""
    for key, kind in kinds(config).items():
        name = kind.partition(":")[0].partition(".")[0]
        if name in (INTERACTIVE, "ggcn"):  # the latter is in the copy of the code
            continue
        spec = find(name)
        if spec is None and not any((run / FOLDER / each).exists() for each in (name, f"{name}.py")):
            raise UserError(missing(key, kind, name))
        if spec and spec.origin and not _is_installed(spec.origin):
            _copy(Path(spec.origin), name, run / FOLDER)


def _is_installed(origin: str) -> bool:
    """Whether a module belongs to Python or to an installed package, which every rank has."""
    return origin.startswith(sysconfig.get_path("stdlib") + os.sep) or "site-packages" in origin


def find(name: str) -> ModuleSpec | None:
    """Where a top-level module would be imported from: Python's path, then the current folder; None for nowhere.
    Imports nothing."""
    return PathFinder.find_spec(name, [*sys.path, os.getcwd()])


def missing(key: str, kind: str, name: str) -> str:
    """The sentence about a module that is found nowhere."""
    return (
        f"{key}={kind}: there is no module {name} on Python's path or in this folder; start from its folder, or add "
        "that to PYTHONPATH (a run keeps a copy in RUN/own)"
    )


def _copy(origin: Path, name: str, folder: Path) -> None:
    """Copies a module's file, or all Python files of a package, in place of an earlier copy; warns of changes."""
    package = origin.name == "__init__.py"
    sources = sorted(origin.parent.rglob("*.py")) if package else [origin]
    contents = {
        Path(name, path.relative_to(origin.parent)) if package else Path(f"{name}.py"): path.read_bytes()
        for path in sources
    }
    earlier = {path: (folder / path).read_bytes() for path in contents if (folder / path).is_file()}
    if changed := [str(path) for path, data in earlier.items() if data != contents[path]]:
        log.warning(
            "%s changed since %s began; it goes on with the new code", ", ".join(changed), folder.parent
        )
    if earlier == contents:
        return
    temporary = folder.with_name(f".tmp-{FOLDER}")
    shutil.rmtree(temporary, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, temporary)
    for path, data in contents.items():
        (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        (temporary / path).write_bytes(data)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)


def use(run: Path) -> None:
    """Lets this process import a run's own modules, before others of their names."""
    folder = str(run / FOLDER)
    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.insert(0, folder)


def facts(run: Path) -> dict[str, str]:
    """{file: short SHA-256} of a run's own modules."""
    root = run / FOLDER
    paths = sorted(root.rglob("*.py"))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in paths}
