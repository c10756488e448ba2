"""What training shows: live lines on a terminal, plain lines elsewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import on_a_terminal

from ggcn.run.history import Scores
from ggcn.run.sparkline import sparkline

TRAIN = """
import logging, sys
from pathlib import Path
from ggcn.launch import rank_log
from ggcn.run.directory import RunDir
from ggcn.run import display
run = RunDir(Path(sys.argv[1]))
rank_log.configure(run.log(0), 0)
shown = display.display(run, 100, 110, batch=8)
for step in range(10):
    shown.advance({"energy_gap/4": 0.5, "energy_gap/16": 0.25}, "healthy")
    if step == 5:
        logging.getLogger("ggcn").warning("a warning that is read")
        with display.bar(20, "image", "samples") as bar:
            bar.update(20)
shown.close()
print("over")
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with two evaluations."""
    rows = [{"step": 50, "fid": 20.0}, {"step": 100, "fid": 12.5}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_terminal_shows_bar_rate_metrics_and_the_course_of_the_fid(run: Path) -> None:
    pytest.importorskip("rich")
    shown = on_a_terminal(sys.executable, "-c", TRAIN, run)
    last = shown[shown.rindex("110 of 110") :]
    for text in (
        "100 %",
        "images a second",
        "gap 0.25, healthy",
        "FID 12.5 █▁ best 12.5 at step 100",
        "over",
    ):
        assert text in last
    assert "━" in shown
    assert "WARNING: a warning that is read\r\n" in shown
    assert "samples" in shown


def test_a_file_gets_plain_lines(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, run], capture_output=True, text=True, check=True, timeout=60
    )
    first, warning, last = done.stderr.splitlines()
    assert re.fullmatch(
        r"step 101 of 110 \(91.8 %\); .* s a step, .* images a second, 0 s to go; gap 0.25; healthy", first
    )
    assert warning == "WARNING: a warning that is read"
    assert last.startswith("step 110 of 110 (100 %)")
    assert not re.search(r"[\r\x1b]", done.stderr)


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([1, 2, 3]) == "▁▅█"  # round half to even: the middle of eight blocks
    assert sparkline([5.0, 5.0]) == "▅▅"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(100)), 12)) == 12


def test_the_best_fid_is_the_lowest_and_the_best_r2_the_highest() -> None:
    points = [(1, 3.0), (2, 1.0), (3, 2.0)]
    assert Scores("FID", points).best == (2, 1.0)
    assert Scores("R2", points).best == (1, 3.0)
    assert Scores("", []).best is None
