"""Commands run the code of the checkout that they lie in, from wherever and however they are called."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, quiet_environment

PATTERNS = ("tools/*.py", "cluster/launch.py", "cluster/status.py", "tools/benchmarks/gan.py")
SCRIPTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in PATTERNS
    for path in sorted(ROOT.glob(pattern))
    if "__main__" in path.read_text()
}
SLOW = [name for name in SCRIPTS if name.startswith("tools/") and "\nimport torch" in SCRIPTS[name]]
"""commands that import torch before they parse their flags"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder on the path with other packages of the same names, which refuse to be imported."""
    folder = tmp_path / "installed before"
    for name in ("ggcn", "cluster", "tools"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError(f'{__file__} was imported')\n")
    return folder


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.slow if name in SLOW[1:] else ()) for name in SCRIPTS]
)
def test_a_command_imports_its_own_checkout(script: str, elsewhere: Path, tmp_path: Path) -> None:
    link = tmp_path / "a link"
    link.symlink_to(ROOT / script)
    done = subprocess.run(
        [sys.executable, link, "--help"],
        capture_output=True,
        text=True,
        env=quiet_environment() | {"PYTHONPATH": str(elsewhere)},
        cwd=tmp_path,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
