"""The report of a run: complete, self-contained, and robust against damaged and hostile files."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY, call
from run_files import HOSTILE, Page, begun, figures, full, lines, metric_lines

from ggcn import report
from ggcn.cli import status_text
from ggcn.config.compose import compose, to_yaml
from ggcn.errors import UserError
from ggcn.run import event_log, status
from ggcn.run.directory import RunDir


def test_the_page_shows_all_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    run = full(tmp_path)
    out = report.write(run)
    assert out == run.path / "report.html"
    text = out.read_text()
    page = Page(text)
    shown = [name.strip() for name in figures(text)]
    for name in (
        "FID",
        "KID",
        "Energies",
        "Energy gap",
        "R²",
        "JKO term",
        "Displacement",
        "Amortization error",
        "Gradient norms",
    ):
        assert name in shown
    for name in ("Saturation", "Images per second", "Seconds per step", "Memory"):
        assert name in shown
    for text_shown in (
        "held-out 16 px",
        "300 of 400",
        "93.5",
        "at step 200",
        "1 divergence",
        "rolled back to",
        "energy_gap/16 1e+04, limit 50",
        "SIGUSR2",
        "killed",
        "40 %",
        "efficientnet-lite2",
        "train.steps",
    ):
        assert text_shown in page.text
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not re.search(r"https?:|//|url\(|@import|<link|<iframe", re.sub(r"base64,[^\"]*", "", text))
    assert not re.search(r"<[^>]* (style|on\w+)=", text)


def test_the_policy_of_the_page_allows_its_own_script_and_style_alone(tmp_path: Path) -> None:
    text = report.write(full(tmp_path)).read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_restarts_and_the_divergence_are_marked_in_the_curves(tmp_path: Path) -> None:
    text = report.write(full(tmp_path)).read_text()
    gap = text[text.index("<figcaption>Energy gap") :].partition("</figure>")[0]
    assert gap.count('class="mark restart"') == 2
    assert "restart at step 90: stopped by SIGUSR2" in gap
    assert gap.count('class="mark incident"') == 1


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "submissions.jsonl", "incidents.jsonl", "evaluations.jsonl"]
)
def test_damaged_lines_are_skipped(tmp_path: Path, name: str) -> None:
    run = full(tmp_path)
    path = run.path / name
    intact = path.read_bytes()
    for damage in (intact[:-20], intact + b"\x00\x00\xff\xfe\n[1]\n7\n", b"", b"{\n" + intact, b"\xff" * 50):
        path.write_bytes(damage)
        Page(report.write(run).read_text())


def test_values_that_are_not_numbers_leave_a_gap_in_the_curve(tmp_path: Path) -> None:
    run = full(tmp_path)
    odd = metric_lines(60)
    odd[20]["energy_gap/16"], odd[21]["energy_gap/16"], odd[22]["energy_gap/16"] = (
        float("nan"),
        float("inf"),
        "torn",
    )
    odd[30]["amortization/4"] = None
    lines(run.metrics, odd)
    text = report.write(run).read_text()
    Page(text)
    text = re.sub(r"base64,[^\"]*", "", text)  # of random images, which may contain anything
    assert not re.search(r"[ML ]-?(nan|inf)", text)


def test_a_run_that_has_just_started_has_a_report(tmp_path: Path) -> None:
    page = Page(report.write(begun(tmp_path)).read_text())
    for note in (
        "0 of 400",
        "No evaluation yet.",
        "No samples yet.",
        "No step logged yet.",
        "Not started yet.",
    ):
        assert note in page.text
    with pytest.raises(UserError, match="no run directory"):
        report.write(RunDir(tmp_path / "none"))


def test_html_in_a_runs_files_is_escaped(tmp_path: Path) -> None:
    run = full(tmp_path)
    config = compose([*TINY, "train.steps=400"])
    config.data.shards = config.cluster.account = HOSTILE
    run.config.write_text(to_yaml(config))
    with (run.path / event_log.NAME).open("w") as file:
        file.write(
            json.dumps(
                {"event": "start", "time": 1.0, "job": HOSTILE, "world": 1, "step": 0, "host": HOSTILE}
            )
            + "\n"
        )
    evil = {"step": 3, "fid": 2.0, "kid": 0.1, "count": HOSTILE, "features": HOSTILE, "time": 0}
    lines(run.evaluations, [evil])
    lines(run.metrics, [{"step": 2, "health": HOSTILE, "reasons": [HOSTILE]}])
    lines(run.incidents, [{"step": 1, "reasons": [HOSTILE], "rolled_back_to": HOSTILE, "time": HOSTILE}])
    text = report.write(run).read_text()
    assert text.count("<script") == 1
    assert HOSTILE in Page(text).text


def test_the_report_of_a_long_run_is_small_and_quick(tmp_path: Path) -> None:
    run = full(tmp_path)
    once = report.write(run).stat().st_size
    lines(
        run.metrics, [line | {"step": 50 * n + line["step"]} for n in range(100) for line in metric_lines(50)]
    )
    began = time.perf_counter()
    assert report.write(run).stat().st_size < 2 * once
    assert time.perf_counter() - began < 10
    assert report.read(run).metrics[-1]["step"] == 5000


def test_evaluations_with_other_sample_counts_are_separate_curves(tmp_path: Path) -> None:
    run = full(tmp_path)
    with (run.evaluations).open("w") as file:
        for step, fid, many in ((100, 180.0, 400), (150, 20.0, 5000), (200, 170.0, 400)):
            file.write(
                json.dumps({"step": step, "fid": fid, "kid": 0.1, "count": many, "features": "x"}) + "\n"
            )
    text = report.write(run).read_text()
    assert re.search(r"best FID</span><strong>170</strong><small>at step 200", text)
    assert "5000 samples" in text


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "submissions.jsonl", "incidents.jsonl", "evaluations.jsonl"]
)
def test_numbers_beyond_a_floats_range_and_deep_nesting_are_skipped(tmp_path: Path, name: str) -> None:
    run = full(tmp_path)
    path = run.path / name
    keys = ("time", "energy_gap/16", "fid", "kid", "step_s", "energy_loss")
    huge = {"event": "start", "step": 300, **dict.fromkeys(keys, 10**400)}
    row = {"rank": 0, "node": "n1", **dict.fromkeys(("time", "step", "step_s", "checkpoint_s"), 10**400)}
    run.heartbeats.mkdir(parents=True, exist_ok=True)
    (run.heartbeats / "rank_0000.json").write_text(json.dumps(row))
    for record in (huge, huge | {"step": 10**400}):
        deep = "[" * 100_000 + "\n"
        path.write_text(path.read_text() + "\n" + deep + json.dumps(record) + "\n")
        Page(report.write(run).read_text())
        assert status_text.table([run], None)
        assert status_text.report(status.read(run))


def test_old_records_are_shown_without_credentials(tmp_path: Path) -> None:
    run = full(tmp_path)
    secret = "https://me:hunter2@host/x?sig=hunter2 cannot be read"
    event_log.add(run, "stop", reason=secret, step=5)
    lines(run.incidents, [{"step": 230, "reasons": [secret], "rolled_back_to": 200}])
    logged = metric_lines(60)
    logged[-1] |= {"health": "suspect", "reasons": [secret]}
    lines(run.metrics, logged)
    text = report.write(run).read_text()
    assert "https://***@host/x" in text
    assert "hunter2" not in text


def test_the_command_writes_the_report_and_imports_no_torch(tmp_path: Path) -> None:
    run = full(tmp_path)
    out = tmp_path / "there.html"
    done = call("tools/report.py", run.path, "--out", out)
    assert (done.returncode, done.stdout.strip()) == (0, str(out))
    Page(out.read_text())
    (tmp_path / "empty").mkdir()
    wrong = call("tools/report.py", tmp_path / "empty")
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: no run in .*; name a run directory, such as runs/NAME\n", wrong.stderr)
    loaded = "import sys, ggcn.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"
