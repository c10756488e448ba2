"""The report of a run, on run directories as they are found in life: whole, torn, empty, hostile."""

import base64
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, call
from PIL import Image

from ggcn import image_grid, report
from ggcn.cli import status
from ggcn.config.compose import compose, to_yaml
from ggcn.errors import UserError
from ggcn.report.attempts import lives
from ggcn.report.charts import Line, both_ways, chart, linear, logarithmic, number, scale, thin
from ggcn.report.samples import STRIPS, finest_row
from ggcn.run import event_log, sample_images
from ggcn.run.directory import RunDir

HOSTILE = "</pre><script>alert(1)</script>&\"'"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page holds; raises on tags that do not close one another."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def lines(path: Path, records: list[dict], torn: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


def metric_lines(steps: int) -> list[dict]:
    rng, found = np.random.default_rng(0), []
    for step in range(1, steps + 1):
        noise = rng.standard_normal(8)
        line = {"step": step, "health": "suspect" if 200 < step < 230 else "healthy"}
        for place, size in enumerate((4, 16)):
            line |= {f"energy_data/{size}": 0.2 * noise[0] - place, f"energy_samples/{size}": 0.3 * noise[1]}
            line |= {f"energy_gap/{size}": float(noise[2]) * (40 if 200 < step < 230 else 1)}
            line |= {
                f"jko/{size}": 1e-3 * step * np.exp(noise[3]),
                f"amortization/{size}": 0.3 / step * np.exp(noise[4]),
            }
            line |= {
                f"relative_displacement/{size}": 3 + noise[5] / 3,
                f"gradient/{size}": float(np.exp(noise[6])),
            }
            line |= {f"saturation/{size}": 0.01 * noise[7] ** 2, f"data_saturation/{size}": 0.004}
        line |= {"energy_gradient_norm": float(np.exp(noise[0])), "upsampler_gradient_norm": 0.1}
        line |= {"seconds/data": 0.01, "seconds/sample": 0.4, "seconds/energy": 0.3, "seconds/upsampler": 0.2}
        line |= {"seconds/step": 1.0, "images_per_second": 16 + noise[1], "memory_gb": 0.5}
        found.append(line)
    return found


def begun(folder: Path, *words: str) -> RunDir:
    """A run directory that holds a config and nothing else."""
    run = RunDir(folder / "run")
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(compose([*TINY, "run=run", "train.steps=400", *words])))
    return run


def full(folder: Path, *words: str) -> RunDir:
    """A run that was stopped, killed and preempted, diverged once and goes on; last lines torn."""
    run = begun(folder, *words)
    lines(run.metrics, metric_lines(300), torn='{"step": 301, "energy_gap/4": 0.')
    now = time.time()
    events = [("start", 0, 5000), ("stop", 90, 4200), ("start", 90, 4000), ("start", 130, 3000)]
    lines(
        run.path / event_log.NAME,
        [
            {"event": event, "time": now - ago, "job": None, "step": step, "world": 2, "host": "n1", "pid": 1}
            | ({"reason": "SIGUSR2"} if event == "stop" else {})
            for event, step, ago in events
        ],
        torn='{"event": "st',
    )
    incident = {
        "step": 230,
        "attempt": 0,
        "reasons": ["energy_gap/16 1e+04, limit 50"],
        "rolled_back_to": 200,
    }
    lines(run.incidents, [incident | {"gave_up": False, "time": "2026-01-02T03:04:05+00:00", "signals": {}}])
    told = {"count": 400, "seed": 0, "features": "efficientnet-lite2", "best": False}
    scores = [(100, 180.0, 0.2), (200, 93.5, 0.08), (300, 101.0, 0.09)]
    evaluations = [{"step": s, "time": now, "fid": f, "kid": k, **told} for s, f, k in scores]
    lines(run.evaluations, evaluations, torn='{"step": 350, "fid": 1.0')
    for step in range(20, 301, 20):
        sheet(run, step)
    return run


def sheet(run: RunDir, step: int, start: str = "hidden") -> torch.Tensor:
    """A picture as the trainer writes it; returns the finest grid's chain ends."""
    images = [torch.rand(4, 3, size, size) * 2 - 1 for size in (16, 4, 4, 16, 16)]
    rows = list(
        zip(["data", "4 px start", "4 px refined", "16 px start", "16 px refined"], images, strict=True)
    )
    if start == "replay_buffer":
        rows.append(("replay buffer", images[1]))
    image_grid.save(image_grid.labelled_rows("title", rows, side=64), run.samples / f"step_{step:06d}.png")
    return images[-1]


def figures(text: str) -> list[str]:
    return re.findall(r"<figcaption>([^<]*)", text)


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
        "Gap",
        "JKO term",
        "Displacement",
        "Teaching error",
        "Gradient norms",
    ):
        assert name in shown
    for name in ("Saturation", "Images a second", "Seconds of a step", "Memory"):
        assert name in shown
    for told in (
        "301 of 400",
        "93.5",
        "at step 200",
        "1 divergence",
        "went back to",
        "energy_gap/16 1e+04, limit 50",
    ):
        assert told.replace("301", "300") in page.words
    for told in ("SIGUSR2", "killed", "45 %", "efficientnet-lite2", "train.steps"):
        assert told.replace("45 %", "40 %") in page.words
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    assert not re.search(
        r"https?:|//|url\(|@import|<script|<link|<iframe", re.sub(r"base64,[^\"]*", "", text)
    )


def test_restarts_and_the_divergence_are_marked_in_the_curves(tmp_path: Path) -> None:
    text = report.write(full(tmp_path)).read_text()
    gap = text[text.index("<figcaption>Energy gap") :].partition("</figure>")[0]
    assert gap.count('class="mark restart"') == 2
    assert "restart at step 90: stopped by SIGUSR2" in gap
    assert gap.count('class="mark incident"') == 1


def test_pictures_are_few_and_the_evolution_is_the_finest_grids_row(tmp_path: Path) -> None:
    run = full(tmp_path)
    text = report.write(run).read_text()
    assert text.count('class="row"') == STRIPS
    assert [f"step {step}" in figures(text) for step in (20, 300)] == [True, True]
    (run.samples / "step_000320.png").write_bytes((run.samples / "step_000300.png").read_bytes()[:2000])
    text = report.write(run).read_text()
    assert text.count('class="row"') == STRIPS - 1  # the torn one is left out
    assert "step 280" in figures(text)


@pytest.mark.parametrize("model", ["ggcn", "gcn"])
def test_the_row_that_is_cut_out_is_that_of_the_samples(tmp_path: Path, model: str) -> None:
    run = begun(tmp_path, f"model={model}", "model.grids=[4,16]" if model == "ggcn" else "model.grids=[16]")
    config = report.read(run).status.config
    ends = torch.rand(4, 3, 16, 16) * 2 - 1
    others = torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 4, 4)
    rows = [
        ("data", others[0]),
        *[("coarse", others[1])] * 2 * (model == "ggcn"),
        ("start", others[0]),
        ("ends", ends),
    ]
    rows += [("replay buffer", others[0])] * (model == "gcn")
    page = image_grid.labelled_rows("title", rows, side=64)
    row = finest_row(page, config)
    assert row is not None
    assert np.array_equal(np.asarray(row), np.asarray(image_grid.make_grid(ends, 4, 4)))
    assert finest_row(page.crop((0, 0, page.width, page.height - 9)), config) is None


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "submissions.jsonl", "incidents.jsonl", "evaluations.jsonl"]
)
def test_damaged_lines_are_passed_over(tmp_path: Path, name: str) -> None:
    run = full(tmp_path)
    path = run.path / name
    whole = path.read_bytes()
    for damage in (whole[:-20], whole + b"\x00\x00\xff\xfe\n[1]\n7\n", b"", b"{\n" + whole, b"\xff" * 50):
        path.write_bytes(damage)
        Page(report.write(run).read_text())


def test_values_that_are_no_numbers_leave_a_gap(tmp_path: Path) -> None:
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
    text = re.sub(r"base64,[^\"]*", "", text)  # of random pictures, which may spell anything
    assert not re.search(r"[ML ]-?(nan|inf)", text)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page = Page(report.write(begun(tmp_path)).read_text())
    for told in (
        "0 of 400",
        "No evaluation yet.",
        "No picture yet.",
        "No step logged yet.",
        "Not started yet.",
    ):
        assert told in page.words
    with pytest.raises(UserError, match="no run directory"):
        report.write(RunDir(tmp_path / "none"))


def test_a_hostile_config_stays_words(tmp_path: Path) -> None:
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
    assert "<script" not in text
    assert HOSTILE in Page(text).words


def test_a_long_run_stays_small_and_quick(tmp_path: Path) -> None:
    run = full(tmp_path)
    once = report.write(run).stat().st_size
    lines(
        run.metrics, [line | {"step": 50 * n + line["step"]} for n in range(100) for line in metric_lines(50)]
    )
    began = time.perf_counter()
    assert report.write(run).stat().st_size < 2 * once
    assert time.perf_counter() - began < 10
    assert report.read(run).lines[-1]["step"] == 5000


def test_evaluations_of_other_counts_are_lines_of_their_own(tmp_path: Path) -> None:
    run = full(tmp_path)
    with (run.evaluations).open("w") as file:
        for step, fid, many in ((100, 180.0, 400), (150, 20.0, 5000), (200, 170.0, 400)):
            file.write(
                json.dumps({"step": step, "fid": fid, "kid": 0.1, "count": many, "features": "x"}) + "\n"
            )
    text = report.write(run).read_text()
    assert re.search(r"best FID</span><strong>170</strong><small>at step 200", text)
    assert "5000 samples" in text


def test_lives_end_as_the_events_say() -> None:
    def event(kind: str, at: float, **facts: object) -> dict:
        return {"event": kind, "time": at, "job": None, "step": 0, "world": 1, **facts}

    told = [event("start", 10), event("stop", 20, reason="SIGTERM"), event("start", 30), event("start", 50)]
    ends = [(life.begin, life.end, life.how) for life in lives(told, 99, running=True)]
    assert ends == [(10, 20, "stopped"), (30, 50, "killed"), (50, 99, "running")]
    assert lives(told, 99, running=False, beat=70)[-1].end == 70
    done = [*told, event("finish", 80)]
    assert lives(done, 99, running=False)[-1].how == "finished"
    skewed = [event("start", 30), event("stop", 29, reason="SIGTERM"), event("start", 28), event("start", 27)]
    ends = [(life.begin, life.end, life.how) for life in lives(skewed, 26, running=True)]
    assert ends == [(30, 30, "stopped"), (28, 28, "killed"), (27, 27, "running")]


def test_a_job_that_waits_has_no_life_yet(tmp_path: Path) -> None:
    run = begun(tmp_path)
    event_log.add(run, "asking", array="1", index=0)
    event_log.add(run, "submit", nodes=1)
    assert lives(event_log.read(run), 99, running=False) == []
    assert "submit" in Page(report.write(run).read_text()).words


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "submissions.jsonl", "incidents.jsonl", "evaluations.jsonl"]
)
def test_numbers_beyond_all_range_and_endless_nesting_are_passed_over(tmp_path: Path, name: str) -> None:
    run = full(tmp_path)
    path = run.path / name
    keys = ("time", "energy_gap/16", "fid", "kid", "step_s", "energy_loss")
    vast = {"event": "start", "step": 300, **dict.fromkeys(keys, 10**400)}
    beat = {"rank": 0, "node": "n1", **dict.fromkeys(("time", "step", "step_s", "save_s"), 10**400)}
    run.heartbeats.mkdir(parents=True, exist_ok=True)
    (run.heartbeats / "rank_0000.json").write_text(json.dumps(beat))
    for record in (vast, vast | {"step": 10**400}):
        deep = "[" * 100_000 + "\n"
        path.write_text(path.read_text() + "\n" + deep + json.dumps(record) + "\n")
        Page(report.write(run).read_text())
        assert status.table([run])
        assert status.report(status.read(run))


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


def test_a_link_shows_no_picture_from_outside_the_run(tmp_path: Path) -> None:
    run = full(tmp_path)
    private = Image.new("RGB", (321, 123), "red")
    private.save(tmp_path / "private.jpg")
    private.save(tmp_path / "private.png")
    page, row = sample_images.thumbnails(run.samples / "step_000300.png")
    page.parent.mkdir()
    page.symlink_to(tmp_path / "private.jpg")
    row.symlink_to(tmp_path / "private.jpg")
    (run.samples / "step_000310.png").symlink_to(tmp_path / "private.png")
    sample_images.thumbnails(run.samples / "step_000280.png")[0].symlink_to("step_000280.jpg")
    text = report.write(run).read_text()
    assert 'width="321"' not in text
    assert text.count('class="row"') > 2


def test_a_thumbnail_is_encoded_again(tmp_path: Path) -> None:
    run = full(tmp_path)
    for place in sample_images.thumbnails(run.samples / "step_000300.png"):
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (321, 123), "red").save(place, comment=b"hunter2")
    text = report.write(run).read_text()
    shown = [base64.b64decode(data) for data in re.findall(r'width="321"[^>]*base64,([^"]*)', text)]
    assert shown
    assert not any(b"hunter2" in data for data in shown)


def test_a_picture_of_another_kind_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.eps")
    run.samples.mkdir()
    (tmp_path / "x.eps").rename(run.samples / "step_000010.png")
    asked: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: asked.append(args))
    assert "No picture yet." in Page(report.write(run).read_text()).words
    assert asked == []


def test_inside_its_own_job_the_run_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("GGCN_JOB", "77")
    event_log.add(run, "start", mode="slurm", world=1, step=0, host="elsewhere", pid=1)
    assert report.read(run, {}).running
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not report.read(run, {}).running  # SLURM was asked and has no such job


def test_the_command_and_what_it_loads(tmp_path: Path) -> None:
    run = full(tmp_path)
    out = tmp_path / "there.html"
    told = call("tools/report.py", run.path, "--out", out)
    assert (told.returncode, told.stdout.strip()) == (0, str(out))
    Page(out.read_text())
    wrong = call("tools/report.py", tmp_path)
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: .* is no run directory .*\n", wrong.stderr)
    loaded = "import sys, ggcn.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"


def test_axes_have_few_round_ticks() -> None:
    assert linear(0, 97, 5).ticks == [0, 20, 40, 60, 80]
    assert linear(-0.3, 0.2).ticks == pytest.approx([-0.3, -0.2, -0.1, 0, 0.1, 0.2])
    assert linear(5, 5).share(5) == pytest.approx(0.5)
    assert logarithmic(2e-5, 3e2).ticks == pytest.approx([1e-3, 1e-1, 1e1])
    assert logarithmic(0.9, 60).ticks == pytest.approx([1, 2, 5, 10, 20, 50])
    wide = both_ways(-50, 400, 1)
    assert 0 in wide.ticks
    assert all(-50 <= tick <= 400 for tick in wide.ticks)
    assert wide.share(0) < wide.share(1) < wide.share(400) == 1


def test_an_axis_suits_its_values() -> None:
    assert scale([1e-4, 1.0]).share(1e-2) == pytest.approx(0.5)  # logarithmic
    assert scale([1.0, 3.0]).share(2.0) == 0.5  # linear
    gap = scale([0.1, -0.1] * 50 + [45.0])
    assert gap.share(0.1) - gap.share(-0.1) > 0.1  # a burst leaves room for the rest
    assert scale([0.0, 0.0]).share(0.0) == pytest.approx(0.5)


def test_thinning_keeps_peaks_and_ends() -> None:
    points = [(float(x), float(x == 4321) - float(x == 777)) for x in range(10_000)]
    few = thin(points, 240)
    assert len(few) <= 240
    assert (4321.0, 1.0) in few
    assert (777.0, -1.0) in few
    assert [x for x, _ in few] == sorted(x for x, _ in few)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0, 0.05, 12_000, 3e6, 2e-5, -1500)] == [
        "0",
        "0.05",
        "12k",
        "3M",
        "2e-05",
        "-1.5k",
    ]


def test_a_line_without_a_finite_value_is_no_chart() -> None:
    assert chart("x", [Line("a", [(0, float("nan"))])]) == ""
    assert "<circle" in chart("x", [Line("a", [(5, 1.0)])])


def test_a_picture_wider_than_the_page_is_made_smaller(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.samples.mkdir()
    Image.effect_noise((5000, 200), 60).save(run.samples / "step_000010.png")
    assert 'width="1400" height="56"' in report.write(run).read_text()
