"""What is not a regular file never hangs a command: a named pipe says nothing for as long as nobody writes to it."""

import os
import subprocess
from pathlib import Path

import pytest
from harness import TINY, command, quiet_environment


def tried(script: str, *args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(script, *args),
        capture_output=True,
        text=True,
        env=quiet_environment(),
        timeout=60,
        check=False,
    )


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
    done = tried(
        script, *(arg.replace("SHARDS", places["SHARDS"]).replace("RUNS", places["RUNS"]) for arg in args)
    )
    assert done.returncode == 2
    assert "a named pipe, not a file" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["tools/sample.py", "tools/report.py", "tools/inspect_checkpoint.py"])
def test_a_run_whose_config_is_a_pipe_is_one_sentence(script: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    done = tried(script, tmp_path, *(["--out", tmp_path / "x.png"] if "sample" in script else []))
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_pipes_among_the_files_of_runs_do_not_end_the_table(tmp_path: Path) -> None:
    for name in ("config.yaml", "submissions.jsonl", "metrics.jsonl"):
        run = tmp_path / f"run-{name}"
        run.mkdir()
        os.mkfifo(run / name)
        if name != "config.yaml":
            (run / "config.yaml").write_text("train: {steps: 7}\n", encoding="utf-8")
    done = tried("cluster/status.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
