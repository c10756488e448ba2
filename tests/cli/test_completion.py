"""What a TAB completes after `ggcn`."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion for bash."""
    path = tmp_path_factory.mktemp("shell") / "ggcn.bash"
    path.write_text(_completion("bash"), encoding="utf-8")
    return path


def _completion(shell: str) -> str:
    command = [sys.executable, "-m", "ggcn", "--completion", shell]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240).stdout


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["ggcn", "sta"], ["status"]),
        (["ggcn", "status", "--js"], ["--json"]),
        (["ggcn", "launch", "--mode", "sl"], ["slurm"]),
        (["ggcn", "launch", "train.energy.l"], ["train.energy.lr="]),
        (["ggcn", "launch", "experiment", "=", "quick"], ["quickstart"]),
        (["ggcn", "launch", "checkpoint.best_by", "="], ["fid", "r2_heldout"]),
        (["ggcn", "report", "REA"], ["README.md"]),
    ],
)
def test_tab_completes(words: list[str], answers: list[str], script: Path) -> None:
    typed = " ".join(f'"{word}"' for word in words)
    code = (
        f"compopt() {{ :; }}; . {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        f'_ggcn ggcn "{words[-1]}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.split(), done.stderr) == (answers, "")


def test_there_is_one_for_zsh() -> None:
    assert "#compdef ggcn" in _completion("zsh")
