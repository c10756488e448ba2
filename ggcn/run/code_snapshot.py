"""The code and the packages that a run is computed by: what they are, what changed, and a copy for the record."""

import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from ggcn import __version__

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.resolve().parents[1]  # of the folder: single files may be links to elsewhere
PARTS = ("ggcn", "cluster", "configs", "tools", "pyproject.toml")
"""of a checkout; an installed package has its configs in ggcn/, and next to it lie packages of other projects"""
PACKAGES = ("torch", "deepspeed", "numpy", "Pillow", "simplejpeg", "webdataset", "submitit")
IGNORED = (".*", "__pycache__", "*.pyc", "*~", "#*#", "core", "core.[0-9]*")
"""what editors, file systems and crashes leave next to code"""
MAX_BYTES = 32_000_000
"""of a file that still may be code"""
COMMIT = "COMMIT"
"""file in a copy: the git commit that it was made from, as JSON"""


def contents(root: Path) -> dict[str, bytes]:
    """{path below `root`: bytes} of every file of the code, in order of the paths."""
    code = {}
    for path in _paths(root):
        if not path.is_file():
            continue  # a link to nowhere, a socket
        if path.stat().st_size > MAX_BYTES:
            log.warning("%s is too large for code; the run's copy of the code goes without it", path)
            continue
        code[path.relative_to(root).as_posix()] = path.read_bytes()
    return dict(sorted(code.items()))


def _paths(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for part in _parts(root):
        if (root / part).is_file():
            yield root / part
        for folder, folders, names in os.walk(root / part, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else [name for name in folders if not _is_ignored(name)]
            if real not in seen:
                seen.add(real)
                yield from (Path(folder, name) for name in names if not _is_ignored(name))


def _parts(root: Path) -> tuple[str, ...]:
    """The files and folders of `root` that belong to this project."""
    return ("ggcn",) if (root / "ggcn/configs").is_dir() else PARTS


def _is_ignored(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in IGNORED)


@functools.cache
def running() -> dict[str, bytes]:
    """The contents of the code that this process imports, as they were at the first call."""
    return contents(ROOT)


def digest(code: dict[str, bytes] | None = None) -> str:
    """Short hash of code, by default of the code that runs."""
    code = running() if code is None else code
    lines = [f"{hashlib.sha256(data).hexdigest()} {path}\n" for path, data in code.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def save(folder: Path) -> None:
    """Copies the code that runs to `folder`, completely or not at all, unless it is there. The copy is writable for
    its owner whatever the original's permissions are. Raises OSError when the disk refuses."""
    if folder.is_dir() and digest(contents(folder)) == digest():
        return
    temporary, replaced = (
        folder.with_name(f".tmp-{kind}{os.getpid()}-{folder.name}") for kind in ("", "old-")
    )
    for leftover in folder.parent.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for path, data in running().items():
            _write(temporary, path, data)
        _write(temporary, COMMIT, json.dumps(commit()).encode())
        if folder.exists():  # an edited copy
            os.rename(folder, replaced)
        os.rename(temporary, folder)
    finally:
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(root: Path, path: str, data: bytes) -> None:
    target = root / path
    for folder in reversed([target.parent, *target.parent.relative_to(root).parents]):
        (root / folder).mkdir(parents=True, exist_ok=True)
        _allow(root / folder, 0o700)
    target.write_bytes(data)
    _allow(target, 0o600)


def _allow(path: Path, mode: int) -> None:
    """Gives a file at least these permissions, whatever the umask; some file systems know no chmod."""
    current = path.stat().st_mode
    if current & mode != mode:
        path.chmod(current | mode)


def versions() -> dict[str, str]:
    """{package: version} of what a run's numbers depend on; imports none of them."""
    versions = {"ggcn": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {**versions, "torch": torch.__version__} if torch else versions  # which names the build too


@functools.cache
def commit() -> dict[str, Any]:
    """{"commit": hash, "dirty": whether the code differs from it}; empty where git does not know the code."""
    try:
        return json.loads((ROOT / COMMIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    top, _, number = _git("rev-parse", "--show-toplevel", "HEAD").partition("\n")
    if not number or not os.path.exists(top) or not os.path.samefile(top, ROOT):
        return {}  # a copy that lies in another checkout
    return {"commit": number, "dirty": bool(_git("status", "--porcelain", "--", *PARTS))}


def _git(*args: str) -> str:
    """What git answers, or an empty string."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *args]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env=environment,
            encoding="utf-8",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts() -> dict[str, Any]:
    """What a run's records say of code and packages: hash, git commit, versions."""
    return {"code": digest(), **commit(), "versions": versions()}


def changes(old: dict[str, Any], copies: Path) -> list[str]:
    """What differs between `old`, facts of an earlier start or checkpoint, and now, one phrase each; `copies` is
    the folder that holds copies of code by hash."""
    differences = []
    if old.get("code") not in (None, digest()):
        differences.append(f"code {old['code']} -> {digest()}{_changed_files(copies / old['code'])}")
    before, now = old.get("versions", {}), versions()
    names = {**before, **now} if before and "code" in old else before  # older records name fewer packages
    pairs = [(name, before.get(name, "none"), now.get(name, "none")) for name in names]
    return differences + [f"{name} {one} -> {other}" for name, one, other in pairs if one != other]


def _changed_files(old: Path) -> str:
    if not old.is_dir():
        return ""
    before, now = contents(old), running()
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return f" ({', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''})"
