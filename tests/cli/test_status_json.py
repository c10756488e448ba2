"""status --json, and --follow on a terminal and for scripts."""

import json
import sys
from pathlib import Path

import pytest
from helpers import TINY, call
from terminal import on_a_terminal

from ggcn.config.compose import compose
from ggcn.run import event_log
from ggcn.run.directory import RunDir

KEYS = {
    *("schema", "name", "path", "state", "detail", "live", "job", "step", "total_steps", "step_seconds"),
    *("images_per_second", "seconds_left", "health", "restarts", "checkpoint_step", "device", "ranks"),
    *(
        "heartbeat",
        "score",
        "score_last",
        "score_best",
        "score_best_step",
        "scores",
        "metrics",
        "config_error",
    ),
}
"""scripts of users read these"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run that was stopped, one whose config is damaged, and one of an unreadable file."""
    for name in ("a", "b"):
        config = compose([*TINY, "data.shards=x", f"paths.runs={tmp_path}", f"run={name}"])
        RunDir.of(config).freeze(config)
    run = RunDir(tmp_path / "a")
    event_log.add(run, "start", mode="local", world=1, step=0, host="elsewhere", pid=1, device="2 x H100")
    event_log.add(run, "stop", step=7, reason="SIGTERM")
    run.metrics.write_text('{"step": 7, "health": "healthy", "energy_gap/4": NaN, "seconds/step": 0.5}\n')
    run.evaluations.write_text('{"step": 5, "fid": 20.0}\n{"step": 7, "fid": 22.0}\n{"step": 9, "fi')
    (tmp_path / "b/config.yaml").write_text("[1")
    return tmp_path


def test_records_are_valid_json_with_stable_keys(runs: Path) -> None:
    done = call("cluster/status.py", runs, "--json")
    assert done.returncode == 0, done.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    first, second = json.loads(done.stdout, parse_constant=refuse)
    assert set(first) == set(second) == KEYS
    assert (first["name"], first["state"], first["detail"]) == ("a", "stopped", "stopped: SIGTERM")
    assert (first["step"], first["step_seconds"], first["images_per_second"]) == (7, 0.5, 32.0)
    assert (first["score"], first["score_last"], first["score_best"]) == ("FID", 22.0, 20.0)
    assert first["scores"] == [[5, 20.0], [7, 22.0]]
    assert first["metrics"]["energy_gap/4"] is None
    assert second["config_error"]


def test_scripts_follow_in_lines_of_json(runs: Path) -> None:
    done = call("cluster/status.py", runs, "--json", "--follow")
    assert done.returncode == 1
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["a", "b"]


def test_several_runs_are_followed_at_once_in_plain_lines(runs: Path) -> None:
    done = call("cluster/status.py", runs / "a", runs / "b", "--follow")
    first, second = done.stdout.splitlines()
    assert first.startswith("a: ")
    assert "step 7/" in first
    assert second.startswith("b: ")


def test_a_terminal_shows_a_table(runs: Path) -> None:
    pytest.importorskip("rich")
    shown = on_a_terminal(sys.executable, "-c", SHOW, runs)
    assert "stopped" in shown
    assert "FID 22 ▁█" in shown
    assert "healthy" in shown


SHOW = """
import sys
from ggcn.cli.status import show
show(sys.argv[1:], follow=True)
"""
