"""Curves of several runs in one figure, from whatever their files hold so far."""

import json
from pathlib import Path

import pytest

from ggcn.errors import UserError
from tools import plot_runs


def run_dir(folder: Path) -> Path:
    """Of a run whose last line is torn, and which evaluated step 20 twice."""
    folder.mkdir()
    metrics = [{"step": s, "r2/16": s / 100, "r2_heldout/16": s / 200} for s in (10, 20, 30)]
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 40, "r2', encoding="utf-8")
    fids = [{"step": 20, "fid": 9.0}, {"step": 20, "fid": 8.0}, {"step": 30, "fid": float("nan")}]
    (folder / "evaluations.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in fids), encoding="utf-8"
    )
    return folder


def test_the_table_has_the_last_fid_of_each_step_and_none_that_is_not_finite(tmp_path: Path) -> None:
    curves = plot_runs.read(run_dir(tmp_path / "run"), "mine")
    assert plot_runs.table([curves]).splitlines()[0] == "| FID at step | 20 |"
    assert plot_runs.table([curves]).splitlines()[2] == "| mine | 8.0 |"
    assert curves.grids == [16]
    assert curves.series("r2_heldout/16")[-1] == (30, 0.15)


def test_the_figure_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = plot_runs.read(run_dir(tmp_path / "run"), "mine")
    plot_runs.plot([curves, curves], tmp_path / "out.png", "two")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_no_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a run directory"):
        plot_runs.read(tmp_path, "nothing")
