"""Where the wall time of a run went."""

import json
import time
from pathlib import Path

import pytest

from ggcn.run.goodput import NAME, Ledger, Segment, account, read


def test_wall_time_is_told_apart() -> None:
    first = Segment(0, 100, 0, 40, {"start": 10, "compile": 4, "step": 80, "checkpoint": 5})
    second = Segment(130, 200, 30, 60, {"start": 10, "step": 60})  # the last checkpoint was that of step 30
    goodput = account([first, second])
    assert goodput.wall_s == 200
    assert goodput.lost_steps == 10
    assert goodput.seconds == {
        "step": 60 + 60,
        "lost": 20,
        "start": 20,
        "compile": 4,
        "checkpoint": 5,
        "samples": 0,
        "evaluation": 0,
        "other": 1,
        "waiting": 30,
    }
    assert goodput.share == pytest.approx(0.6)


def test_a_roll_back_beyond_a_start_loses_steps_of_earlier_processes() -> None:
    segments = [
        Segment(0, 10, 0, 10, {"step": 10}),
        Segment(10, 20, 10, 20, {"step": 10}),
        Segment(20, 30, 5, 15, {"step": 10}),
    ]
    goodput = account(segments)
    assert goodput.lost_steps == 5 + 10
    assert goodput.seconds["lost"] == pytest.approx(15)
    assert goodput.seconds["step"] == pytest.approx(15)


def test_the_books_outlive_their_process_and_stay_small(tmp_path: Path) -> None:
    for first in (0, 20):  # the second process begins at a checkpoint of step 20
        ledger = Ledger(tmp_path)
        ledger.open(first)
        for step in range(first + 1, first + 31):
            ledger.step_done(step, 1.0 if step > first + 1 else 3.0)
            with ledger.timed("checkpoint"):
                pass
    assert [(segment.first, segment.step) for segment in read(tmp_path)] == [(0, 30), (20, 50)]
    goodput = account(read(tmp_path))
    assert goodput.lost_steps == 10
    assert goodput.seconds["compile"] == pytest.approx(4)
    assert goodput.seconds["step"] == pytest.approx(50)
    Ledger(tmp_path)
    assert len((tmp_path / NAME).read_text().splitlines()) == 2


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    good = {
        "segment": "a",
        "begin": 1.0,
        "end": 3.0,
        "first": 0,
        "step": 2,
        "seconds": {"step": 1.5, "new": 0.2},
    }
    foreign = [
        {**good, "segment": "b", "seconds": None},
        {**good, "segment": "c", "first": "x"},
        [1],
        {"segment": "d"},
    ]
    lines = [json.dumps(each) for each in (good, *foreign)]
    (tmp_path / NAME).write_text("\n".join(lines) + '\n{"segment": "e", "begi')
    (segment,) = read(tmp_path)
    assert account([segment]).seconds["other"] == pytest.approx(0.5)
    assert read(tmp_path / "nowhere") == []


def test_a_roll_back_opens_a_segment_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open(0)
    for step in range(1, 11):
        ledger.step_done(step, 0.0)
    time.sleep(0.05)
    ledger.open(5)
    ledger.write(5)
    first, second = read(tmp_path)
    assert (first.step, second.first) == (10, 5)
    assert second.begin == pytest.approx(first.end)
    assert second.seconds["start"] >= 0
