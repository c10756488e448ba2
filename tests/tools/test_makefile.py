"""make on machines whose Python is old, or whose environment says little."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with blanks in its name that holds what make reads."""
    folder = tmp_path / "a check out"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def old_python(path: Path) -> Path:
    """An interpreter that says it is Python 3.9, and does nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "flag, code, *rest = sys.argv[1:]\n"
        "assert flag == '-c', 'only its version may be queried'\n"
        "sys.version_info, sys.version, sys.argv = (3, 9, 1), '3.9.1 (old)', [flag, *rest]\n"
        "exec(code)\n"
    )
    path.chmod(0o755)
    return path


def make(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs make in a folder."""
    return subprocess.run(
        ["make", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
        timeout=60,
    )


def test_an_old_python_is_refused_and_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    done = make(checkout, "quickstart", f"PYTHON={old_python(tmp_path / 'python3.9')}")
    assert done.returncode == 2
    assert "is Python 3.9.1, and 3.10 or newer is needed; choose another: make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_of_an_old_python_is_refused(checkout: Path) -> None:
    old_python(checkout / "env/bin/python")
    for goal in ("quickstart", "test", "check"):
        done = make(checkout, goal, "VENV=env")
        assert done.returncode == 2
        assert "3.10 or newer is needed; remove env, and choose another" in done.stderr
    assert not (checkout / "env/demo.done").exists()


def test_empty_settings_are_the_usual_ones(checkout: Path) -> None:
    done = make(checkout, "--dry-run", "quickstart", PYTHON="", VENV="")
    assert "python3 -m venv .venv\n" in done.stdout
    assert ".venv/bin/python tools/sample.py" in done.stdout
