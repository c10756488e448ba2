"""The samples in the report: which are shown, and that no other image is."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import Page, begun, figures, full

from ggcn import image_grid, report
from ggcn.report.samples import MAX_SHEETS, finest_row
from ggcn.run import sample_images


def test_the_report_shows_few_sheets_and_the_finest_grids_samples_over_training(tmp_path: Path) -> None:
    run = full(tmp_path)
    text = report.write(run).read_text()
    assert text.count('class="row"') == MAX_SHEETS
    assert [f"step {step}" in figures(text) for step in (20, 300)] == [True, True]
    (run.samples / "step_000320.png").write_bytes((run.samples / "step_000300.png").read_bytes()[:2000])
    text = report.write(run).read_text()
    assert text.count('class="row"') == MAX_SHEETS - 1  # the torn one is left out
    assert "step 280" in figures(text)


@pytest.mark.parametrize("model", ["ggcn", "gcn"])
def test_the_row_that_is_cropped_from_a_sheet_is_that_of_the_finest_grids_samples(
    tmp_path: Path, model: str
) -> None:
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


def test_a_symbolic_link_shows_no_image_from_outside_the_run(tmp_path: Path) -> None:
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


def test_thumbnails_are_encoded_again_without_their_metadata(tmp_path: Path) -> None:
    run = full(tmp_path)
    for place in sample_images.thumbnails(run.samples / "step_000300.png"):
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (321, 123), "red").save(place, comment=b"hunter2")
    text = report.write(run).read_text()
    shown = [base64.b64decode(data) for data in re.findall(r'width="321"[^>]*base64,([^"]*)', text)]
    assert shown
    assert not any(b"hunter2" in data for data in shown)


def test_an_image_of_another_format_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.eps")
    run.samples.mkdir()
    (tmp_path / "x.eps").rename(run.samples / "step_000010.png")
    calls: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: calls.append(args))
    assert "No samples yet." in Page(report.write(run).read_text()).text
    assert calls == []


def test_a_sheet_wider_than_the_page_is_scaled_down(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.samples.mkdir()
    Image.effect_noise((5000, 200), 60).save(run.samples / "step_000010.png")
    assert 'width="1400" height="56"' in report.write(run).read_text()
