"""What is not a regular file never hangs a command: a named pipe says nothing for as long as nobody writes to it."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, call
from PIL import Image

from ggcn.run import checkpoint


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("tools/verify_shards.py", ["SHARDS"]),
        ("cluster/launch.py", ["-m", "local", *TINY, "data.shards=SHARDS", "paths.runs=RUNS", "run=one"]),
    ],
)
def test_shards_whose_manifest_is_a_pipe_are_one_sentence(
    script: str, args: list[str], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    os.mkfifo(shards / "manifest.json")
    places = {"SHARDS": str(shards), "RUNS": str(tmp_path / "runs")}
    done = call(
        script, *(arg.replace("SHARDS", places["SHARDS"]).replace("RUNS", places["RUNS"]) for arg in args)
    )
    assert done.returncode == 2
    assert "a named pipe, not a file" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["tools/sample.py", "tools/report.py", "tools/inspect_checkpoint.py"])
def test_a_run_whose_config_is_a_pipe_is_one_sentence(script: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    done = call(script, tmp_path, *(["--out", tmp_path / "x.png"] if "sample" in script else []))
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_pipes_among_the_files_of_runs_do_not_end_the_table(tmp_path: Path) -> None:
    for name in ("config.yaml", "submissions.jsonl", "metrics.jsonl"):
        run = tmp_path / f"run-{name}"
        run.mkdir()
        os.mkfifo(run / name)
        if name != "config.yaml":
            (run / "config.yaml").write_text("train: {steps: 7}\n", encoding="utf-8")
    done = call("cluster/status.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(9):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_pipes_among_shards_are_named_and_built_over(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    making = ("tools/make_shards.py", images, out, "--size", 8, "--workers", 1)
    assert call(*making).returncode == 0
    for name in ("000000.json", "000001.tar", "000099.json"):
        (out / name).unlink(missing_ok=True)
        os.mkfifo(out / name)
    done = call("tools/verify_shards.py", out, "--workers", 1)
    assert done.returncode == 1, done.stderr
    assert "000000.json: cannot be read" in done.stdout
    assert "000001.tar: missing" in done.stdout
    assert "000099.json: does not belong here" in done.stdout
    assert call(*making).returncode == 0
    done = call("tools/verify_shards.py", out, "--workers", 1)
    assert done.returncode == 0, done.stdout


def test_a_pipe_beside_finished_shards_does_not_hold_make_shards_up(images: Path, tmp_path: Path) -> None:
    making = ("tools/make_shards.py", images, tmp_path / "out", "--size", 8, "--workers", 1)
    assert call(*making).returncode == 0
    os.mkfifo(tmp_path / "out" / "000099.json")
    done = call(*making)
    assert done.returncode == 0, done.stderr


def test_shards_whose_claim_is_a_pipe_are_one_sentence(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "build.json")
    done = call("tools/make_shards.py", images, tmp_path / "out", "--size", 8, "--workers", 1)
    assert done.returncode == 2
    assert "a named pipe, not a file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["latest", "best", "meta.json", "COMPLETE", "state.pt"])
def test_a_checkpoint_with_a_pipe_is_inspected(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    folder = root / checkpoint.name(5)
    folder.mkdir(parents=True)
    content = b"weights"
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    meta = json.dumps({"step": 5, "files": {"state.pt": facts}})
    (folder / "state.pt").write_bytes(content)
    (folder / "meta.json").write_text(meta, encoding="utf-8")
    (folder / "COMPLETE").write_text(hashlib.sha256(meta.encode()).hexdigest(), encoding="utf-8")
    place = (root if name in ("latest", "best") else folder) / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    done = call("tools/inspect_checkpoint.py", tmp_path)
    assert "Traceback" not in done.stderr
    valid = name in ("latest", "best")
    assert done.returncode == (0 if valid else 1), done.stderr
    assert ("valid" if valid else "DAMAGED") in done.stdout
