"""The page that compares runs."""

import re
from pathlib import Path

import pytest
from helpers import call
from run_files import HOSTILE, Page, begun, compared, full, lines

from ggcn import report
from ggcn.config.compose import load, to_yaml


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three points of a sweep that differ in their learning rate, and one that has not started."""
    return compared(tmp_path_factory.mktemp("runs") / "lr")


def test_a_sweeps_folder_is_one_page_of_settings_numbers_curves_and_samples(sweep: Path) -> None:
    done = call("tools/report.py", sweep)
    assert (done.returncode, done.stdout.strip()) == (0, str(sweep / "comparison.html"))
    text = (sweep / "comparison.html").read_text(encoding="utf-8")
    page = Page(text)
    for shown in (
        "Comparison of 4 runs",
        "lr-0.0001",
        "lr-0.01",
        "train.energy.lr",
        "last FID",
        "R² held-out",
    ):
        assert shown in page.text
    assert text.count('class="top">90') == 3  # the lowest last FID, best FID and KID
    gap = text[text.index("<figcaption>Energy gap") :].partition("</figure>")[0]
    assert gap.count("<g data-key=") == 3
    assert len(re.findall(r'<figure class="sheet"', text)) == 3
    assert len(text) < 2_000_000


def test_settings_that_all_runs_share_are_not_listed(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.html"
    done = call("tools/report.py", sweep / "lr-0.0001", sweep / "lr-0.01", "--out", out)
    assert done.returncode == 0, done.stderr
    head = re.findall(r'<button type="button">([^<]*)</button></th>', out.read_text(encoding="utf-8"))
    assert [name for name in head if "." in name] == ["train.energy.lr"]


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    runs = [begun(tmp_path / name) for name in ("a", "b")]
    text = report.write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in (
        "a/run",
        "b/run",
        "No setting differs.",
        "No run has logged a step yet.",
        "No samples yet.",
    ):
        assert shown in Page(text).text


def test_fids_that_were_measured_differently_are_said_to_be(tmp_path: Path) -> None:
    runs = [full(tmp_path / name) for name in ("a", "b")]
    other = {"step": 100, "fid": 5.0, "kid": 0.1, "count": 5000, "features": "x"}
    lines(runs[1].evaluations, [other])
    text = report.write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "measured in 2 ways, which are not comparable" in text


def test_a_damaged_and_a_hostile_run_cost_the_others_nothing(tmp_path: Path) -> None:
    runs = [full(tmp_path / name) for name in ("a", "b", HOSTILE.replace("/", ""))]
    runs[1].config.write_text("[1", encoding="utf-8")
    config = load(runs[2].config)
    config.data.shards = HOSTILE
    runs[2].config.write_text(to_yaml(config), encoding="utf-8")
    text = report.write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert HOSTILE.replace("/", "") in Page(text).text
    assert "cannot read the config of b/run" in text
