"""The study of stability: when a run counts as lost, and that the study goes on where it was stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import call

from ggcn.errors import UserError
from tools import stability
from tools.benchmarks import stability_figure as figure
from tools.benchmarks import stability_runs as runs


def curves(**columns: list[float]) -> dict[str, list[float]]:
    """Of a healthy run, but for `columns`."""
    count = len(next(iter(columns.values())))
    healthy = {"gap": 0.1, "response": 0.05, "blank": 0.15, "saturation": 0.01, "spread": 1.0}
    return {name: [value] * count for name, value in healthy.items()} | columns


@pytest.mark.parametrize(
    ("columns", "lost"),
    [
        ({"gap": [0.1, 0.2, 0.1]}, None),
        ({"gap": [0.1, -3000.0]}, 20),
        ({"gap": [1e30]}, 10),
        ({"response": [0.2, 0.05, 0.2]}, 30),
        ({"saturation": [0.9, 0.9, 0.1]}, None),
        ({"spread": [1.0, 0.01, 0.01]}, 20),
    ],
)
def test_a_run_is_lost_from_where_it_no_longer_recovers(
    columns: dict[str, list[float]], lost: int | None
) -> None:
    assert runs.lost_at(curves(**columns), 30) == lost


def test_every_point_is_a_config_in_which_only_the_objective_differs() -> None:
    points = runs.points(2)
    assert len(points) == len(set(points)) == 2 * 11 * len(runs.RATES)
    one = {
        p.objective: runs.settings(p, "shards")
        for p in points
        if (p.system, p.lr, p.seed) == ("ggcn", 0.01, 1)
    }
    assert one["KL"].model.flow.gamma == [0.0]
    assert one["JKO on samples"].model.flow.gamma == one["transport"].model.flow.gamma == [1.0]
    for config in one.values():
        assert config.model.chain.step_size == one["KL"].model.chain.step_size
        assert config.model.energy == one["KL"].model.energy
        assert config.train == one["KL"].train


def test_the_share_of_lost_runs_grows_over_steps() -> None:
    group = [{"lost": None}, {"lost": 20}, {"lost": 30}, {"lost": 30}]
    assert figure.share_lost(group, [10, 20, 30]) == [0, 0.25, 1 - 0.25]


def test_a_line_that_was_torn_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    run = {"system": "GCN", "objective": "KL", "lr": 0.01, "seed": 0, "steps": 20, "curves": {}, "lost": None}
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(run) + "\n" + json.dumps(run)[:40], encoding="utf-8")
    assert list(stability.read(file, 20)) == [runs.Point("GCN", "KL", 0.01, 0)]
    with pytest.raises(UserError, match="runs of 20 steps"):
        stability.read(file, 30)


def measured(point: runs.Point) -> dict[str, Any]:
    """What a run of 50 steps left; those of KL at the largest rate blew up at step 30."""
    lost = point.objective == "KL" and point.lr == max(runs.RATES)
    own = curves(gap=[0.1, 0.2, -3000.0] if lost else [0.1] * 5)
    return {**vars(point), "steps": 50, "curves": own, "lost": runs.lost_at(own, 50)}


def test_table_and_figure_show_every_system_and_objective(tmp_path: Path) -> None:
    group = [measured(point) for point in runs.points(2)]
    rows = figure.table(group).splitlines()[4:]
    assert len(rows) == 11
    assert rows[0] == "| FRAME | KL | 0 of 2 | 0 of 2 | 2 of 2 | 2 of 6 | 0.33 | 0.33 | - |"
    assert rows[-1] == "| ggcn | transport | 0 of 2 | 0 of 2 | 0 of 2 | 0 of 6 | 0.33 | 0.33 | 0.33 |"
    pytest.importorskip("matplotlib")
    figure.plot(group, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_study_writes_table_and_figure_and_does_not_repeat_itself(faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    args = ["--data", faces, "--out", tmp_path / "study", "--seeds", 1, "--steps", 10]
    first = call("tools/stability.py", *args)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("seed 0:") == 33
    assert (tmp_path / "study.png").is_file()
    second = call("tools/stability.py", *args)
    assert "seed 0:" not in second.stdout
    assert (tmp_path / "study.md").read_text() in second.stdout
