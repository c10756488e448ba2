"""Reports in a real browser: no errors, nothing wider than the window, and what the pointer does."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROGRAM, Browser
from run_files import compared, full, lines

from ggcn import report
from ggcn.run import event_log
from ggcn.run.directory import RunDir
from ggcn.run.find import find

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of runs in different states."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {name: full(folder / name) for name in ("running", "finished", "diverged")}
    _end(runs["finished"], "finish", step=400)
    _end(runs["diverged"], "end", kind="diverged", reason="diverged at step 230 after 3 roll-backs " * 4)
    verdicts = [{"step": n, "health": "diverged", "energy_gap/16": 10.0 ** (n % 60)} for n in range(1, 300)]
    lines(runs["diverged"].metrics, verdicts)
    result = {name: report.write(run) for name, run in runs.items()}
    sweep = compared(folder / "sweep")
    return result | {"compared": report.write_comparison(find([str(sweep)]), sweep / "comparison.html")}


def _end(run: RunDir, event: str, **facts: object) -> None:
    with (run.path / event_log.NAME).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"event": event, "time": time.time(), "job": None, **facts}) + "\n")


@pytest.mark.parametrize("name", ["running", "finished", "diverged", "compared"])
def test_a_page_has_no_errors_and_fits_the_window(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    for width in (1280, 420):
        browser.open(pages[name], width, dark=width == 420)
        too_wide = browser.value("document.documentElement.scrollWidth > innerWidth")
        assert (too_wide, browser.errors) == (False, [])
        hidden = "[...document.querySelectorAll('.card, .chart, h1, h2, p')].filter((one) => "
        assert browser.value(f"{hidden} one.getBoundingClientRect().right > innerWidth).length") == 0
        assert browser.value("getComputedStyle(document.body).colorScheme || 'none'")


def test_the_pointer_reads_out_the_values_of_a_chart(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["running"], 1280)
    chart = _figure(browser, "R²")
    browser.value(f"{chart}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    area = browser.value(f"{chart}.querySelector('svg:not(.key)').getBoundingClientRect().toJSON()")
    browser.mouse("mouseMoved", area["x"] + 0.98 * area["width"], area["y"] + 80)
    box = browser.value(f"{chart}.querySelector('.readout').innerText").split("\n")
    assert [part for part in box if part] == ["step", "300", *READ_OUT]
    browser.mouse("mouseMoved", 1, 1)
    assert browser.value(f"{chart}.querySelector('.readout').hidden")


READ_OUT = [
    "training 4 px",
    "0.45",
    "training 16 px",
    "0.45",
    "held-out 4 px",
    "0.3",
    "held-out 16 px",
    "0.3",
]


def test_a_click_on_the_legend_hides_a_line(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["running"], 1280)
    chart = _figure(browser, "R²")
    browser.value(f"{chart}.querySelector('.toggle').click()")
    shown = f"[...{chart}.querySelectorAll('g[data-key]')].map((g) => getComputedStyle(g).display !== 'none')"
    assert browser.value(shown) == [False, True, True, True]
    browser.value(f"{chart}.querySelector('.toggle').click()")
    assert browser.value(shown) == [True, True, True, True]


def test_runs_are_sorted_and_hidden_on_the_whole_page(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["compared"], 1280)
    names = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[0].innerText.trim())"
    head = "[...document.querySelectorAll('.sortable th button')].find((one) => one.innerText == 'last FID')"
    browser.value(f"{head}.click()")
    browser.value(f"{head}.click()")
    assert browser.value(names) == ["lr-0.01", "lr-0.001", "lr-0.0001", "lr-0.1"]
    browser.value("document.querySelector('.chips .toggle').click()")
    hidden = "[...document.querySelectorAll('[data-key=run-0]')]"
    assert browser.value(f"{hidden}.length") > 8
    assert browser.value(f"{hidden}.every((one) => getComputedStyle(one).display === 'none')")
    assert browser.errors == []


def _figure(browser: Browser, title: str) -> str:
    """The figure with this title, in JavaScript."""
    return (
        "[...document.querySelectorAll('figure.chart')].find((one) => "
        f"one.querySelector('figcaption').firstChild.textContent.trim() === '{title}')"
    )
