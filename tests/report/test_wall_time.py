"""The part of the page about wall time."""

import json
from pathlib import Path

from ggcn.config.compose import compose
from ggcn.report.layout import html
from ggcn.report.run_data import read
from ggcn.run.directory import RunDir
from ggcn.run.goodput import NAME


def test_the_page_says_where_wall_time_went_and_links_profiles(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    run.freeze(compose([f"paths.runs={tmp_path}", "run=x", "data.shards=/somewhere"]))
    assert "No step on record yet" in html(read(run))
    books = {
        "begin": 0.0,
        "end": 100.0,
        "first": 0,
        "step": 40,
        "seconds": {"start": 10, "step": 80, "checkpoint": 5},
    }
    later = {**books, "begin": 150.0, "end": 200.0, "first": 30, "step": 60, "seconds": {"step": 50}}
    lines = [json.dumps({"segment": name, **segment}) for name, segment in (("a", books), ("b", later))]
    (run.path / NAME).write_text("\n".join(lines) + "\n")
    run.profile.mkdir()
    (run.profile / "rank_0000_steps_20-24.txt").touch()
    page = html(read(run))
    assert "Goodput 55 % of 3 min" in page
    assert "10 steps were lost and computed again" in page
    assert "waiting to start again" in page
    assert '<a href="profile/rank_0000_steps_20-24.txt">' in page
