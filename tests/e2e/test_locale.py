"""The commands in a locale that knows ASCII alone, with folders whose names are not ASCII, or not even UTF-8."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TINY, command, quiet_environment

POOR = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def result(script: str, *overrides: object, code: int = 0) -> bytes:
    """What a command says on both streams, which must end with `code`."""
    done = subprocess.run(
        list(map(os.fsencode, command(script, *overrides))),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=quiet_environment() | POOR,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_the_launcher_speaks_utf8(tmp_path: Path) -> None:
    overrides = [*TINY, "run=r", f"paths.runs={tmp_path / 'ünï'}", "data.shards=/data/日本"]
    shown = result("cluster/launch.py", "-m", "slurm", "--dry-run", *overrides).decode("utf-8")
    assert f"# {tmp_path}/ünï/r/config.yaml" in shown
    assert "shards: /data/日本" in shown
    assert "no shards in /data/日本" in shown


@pytest.mark.slow
def test_folders_have_names_in_any_alphabet(faces: Path, tmp_path: Path) -> None:
    place = tmp_path / "ünï 日本"
    shutil.copytree(faces, place / "faces")
    overrides = [*TINY, "engine=plain", "train.steps=1", "cluster.ranks=1", "run=r", f"paths.runs={place}"]
    launched = result("cluster/launch.py", "-m", "local", *overrides, f"data.shards={place / 'faces'}")
    assert f"complete, step_00000001; samples: {place}".encode() in launched
    assert os.fsencode(place / "r") in result("cluster/status.py", place / "r")
    assert b"valid" in result("tools/inspect_checkpoint.py", place / "r")
    result("tools/report.py", place / "r", "--out", place / "p.html")
    page = (place / "p.html").read_text(encoding="utf-8")
    assert '<meta charset="utf-8">' in page
    result(
        "tools/sample.py",
        place / "r",
        "--count",
        4,
        "--energies",
        place / "r/samples",
        "--out",
        place / "e.csv",
    )
    assert (place / "e.csv").read_text(encoding="utf-8").startswith("name,energy_4,energy_16\n")
    result("tools/export.py", place / "r", "--out", place / "m.safetensors")
    again = [*overrides, "train.steps=2", f"data.shards={place / 'faces'}"]
    assert b"complete, step_00000002" in result("cluster/launch.py", "-m", "local", *again)


@pytest.mark.slow
def test_a_name_that_is_no_utf8_is_no_traceback(faces: Path, tmp_path: Path) -> None:
    data, runs = tmp_path / os.fsdecode(b"x\xff"), tmp_path / os.fsdecode(b"runs\xff")
    shutil.copytree(faces, data)
    overrides = [*TINY, "engine=plain", "train.steps=1", "cluster.ranks=1", "run=r", f"data.shards={data}"]
    assert b"complete" in result(
        "cluster/launch.py", "-m", "local", *overrides, f"paths.runs={tmp_path / 'runs'}"
    )
    result("tools/report.py", tmp_path / "runs/r")
    refused = result("cluster/launch.py", "-m", "local", *overrides, f"paths.runs={runs}", code=2)
    assert b"runs\\udcff/r is no name in UTF-8" in refused
    assert b"Traceback" not in refused
