"""What a run leaves in samples/: sheets of bounded size, thumbnails for its report, and a history that stays even."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import TINY, call
from PIL import Image

from ggcn import image_grid, report
from ggcn.config.compose import compose, to_yaml
from ggcn.report import samples as report_samples
from ggcn.run import event_log, sample_images
from ggcn.run.directory import RunDir


def begun(folder: Path, *argv: str) -> RunDir:
    """A run directory that holds a config and nothing else."""
    run = RunDir(folder / "run")
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(compose([*TINY, "run=run", "train.steps=400", *argv])))
    return run


def sheet(folder: Path, step: int, colour: str = "red") -> Path:
    """A sheet of samples as a run writes it."""
    path = folder / f"step_{step:06d}.png"
    page, row = Image.new("RGB", (300, 200), colour), Image.new("RGB", (250, 60), colour)
    sample_images.write(page, row, path, step)
    return path


@pytest.mark.parametrize("sizes", [[8, 16, 32, 64, 128, 256, 512], [64, 128, 256, 512, 1024]])
def test_a_sheet_of_fine_grids_stays_below_8_megapixels(sizes: list[int]) -> None:
    rows = [("data", torch.zeros(16, 3, sizes[-1], sizes[-1]))]
    rows += [(f"{size} px", torch.zeros(16, 3, size, size)) for size in sizes for _ in range(2)]
    page = image_grid.labelled_rows("title", rows, side=sizes[-1])
    assert 2_000_000 < page.width * page.height < 8_000_000


def test_a_sheet_of_many_wide_rows_shows_fewer_images_and_not_specks() -> None:
    rows = [("row", torch.zeros(100, 3, 256, 256))] * 12
    page = image_grid.labelled_rows("title", rows, side=256)
    assert page.width * page.height < 8_000_000
    assert page.height > 12 * image_grid.MIN_SIDE


def test_small_sheets_are_laid_out_as_ever() -> None:
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    page = image_grid.labelled_rows("title", [("a", images)], side=64)
    strip = image_grid.make_grid(images, 4, 4)
    assert page.height == 26 + strip.height + 4


def test_images_are_averaged_down_where_there_is_no_room() -> None:
    fine = torch.rand(2, 3, 128, 128) * 2 - 1
    small = torch.nn.functional.avg_pool2d(fine, 2)
    assert image_grid.image_row(fine, 64).tobytes() == image_grid.make_grid(small, 2).tobytes()


def test_of_a_long_run_the_newest_stay_and_an_even_history(tmp_path: Path) -> None:
    for step in range(100, 10_100, 100):
        sheet(tmp_path, step)
        sample_images.prune(tmp_path, 5, 100)
    result = list(sample_images.steps(tmp_path))
    assert result[-5:] == [9600, 9700, 9800, 9900, 10000]
    older = result[:-5]
    assert 3 <= len(older) <= 5
    assert older[0] == 100  # the first
    gaps = {after - before for before, after in pairwise(older[1:])}
    assert len(gaps) == 1
    thumbs = {path.name for path in (tmp_path / sample_images.THUMBNAILS).iterdir()}
    assert thumbs == {f"step_{step:06d}{end}" for step in result for end in (".jpg", "-finest.jpg")}


def test_all_stay_where_the_config_says_so(tmp_path: Path) -> None:
    for step in range(1, 30):
        sheet(tmp_path, step)
    sample_images.prune(tmp_path, 0, 1)
    assert len(sample_images.steps(tmp_path)) == 29


def test_what_a_user_put_there_is_never_removed(tmp_path: Path) -> None:
    for step in range(1, 30):
        sheet(tmp_path, step)
    mine = [tmp_path / name for name in ("step_000009_best.png", "best.png", "step_x.png", "notes.txt")]
    for path in mine:
        path.write_bytes(b"mine")
    own = tmp_path / "step_000010.png"
    Image.new("RGB", (9, 9)).save(own)  # of the same name as one of the run's
    copy = tmp_path / "step_000012.png"
    shutil.copy(tmp_path / "step_000011.png", copy)
    damaged = tmp_path / "step_000013.png"
    damaged.write_bytes(b"not an image")
    link = tmp_path / "step_000014.png"
    link.unlink()
    link.symlink_to(tmp_path / "step_000029.png")
    sample_images.prune(tmp_path, 2, 1)
    assert all(path.exists() for path in (*mine, own, copy, damaged, link))
    assert not (tmp_path / "step_000015.png").exists()


def test_the_report_shows_thumbnails_and_decodes_no_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path)
    for step in (100, 200, 300):
        sheet(run.samples, step).write_bytes(b"whatever the sheet is")
    decode = report_samples._open
    kinds: list[str] = []
    monkeypatch.setattr(report_samples, "_open", lambda *args: kinds.append(args[2]) or decode(*args))
    text = report.write(run).read_text()
    assert text.count('class="row"') == 3
    assert "step 300" in text
    assert set(kinds) == {"JPEG"}


def test_missing_and_damaged_thumbnails_and_huge_sheets_are_left_out(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for step in (100, 200, 300, 400):
        sheet(run.samples, step)
    huge = Image.new("1", (20_000, 20_000))  # a few kilobytes that Pillow takes for a bomb
    for step in (300, 400):
        huge.save(run.samples / f"step_{step:06d}.png")
    sample_images.thumbnails(run.samples / "step_000300.png")[1].write_bytes(b"damaged")
    for path in sample_images.thumbnails(run.samples / "step_000400.png"):
        path.unlink()
    text = report.write(run).read_text()
    assert text.count('class="row"') == 2
    assert "step 300" in text


def test_sheets_beyond_a_million_steps_are_in_order(tmp_path: Path) -> None:
    for step in (999_900, 1_000_000, 5):
        sheet(tmp_path, step)
    assert list(sample_images.steps(tmp_path)) == [5, 999_900, 1_000_000]


def test_a_million_lines_of_metrics_are_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, many = begun(tmp_path), 60_000
    filler = "x" * 500
    with run.metrics.open("w") as file:
        for step in range(1, many + 1):
            file.write(json.dumps({"step": step, "energy_gap/16": step / 7, "note": filler}) + "\n")
        file.write('{"step": 60001, "energy_gap')
    result = report.read(run).metrics
    steps = [line["step"] for line in result]
    assert steps[0] == 1
    assert steps[-1] == many
    assert 2000 < len(steps) < 5000
    assert max(after - before for before, after in pairwise(steps)) < 40


def test_a_run_whose_steps_are_all_saved_was_not_killed(tmp_path: Path) -> None:
    run = begun(tmp_path)
    event_log.add(run, "start", world=1, step=0, host="elsewhere", pid=1)
    saved = run.checkpoints / "step_00000400"
    saved.mkdir(parents=True)
    (saved / "COMPLETE").touch()
    text = report.write(run).read_text()
    assert "killed" not in text
    assert "finished" in text


def test_a_run_leaves_thumbnails_and_a_report_that_says_how_it_ended(faces: Path, tmp_path: Path) -> None:
    argv = ["run=tiny", "train.steps=6", "log.samples_every=1", "log.samples_kept=2", "cluster.ranks=1"]
    done = call(
        "cluster/launch.py", "-m", "local", *TINY, *argv, f"data.shards={faces}", f"paths.runs={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "tiny")
    result = sample_images.steps(run.samples)
    assert list(result)[-2:] == [5, 6]
    assert len(result) <= 4
    assert all(thumb.exists() for path in result.values() for thumb in sample_images.thumbnails(path))
    text = (run.path / "report.html").read_text()
    assert "killed" not in text
    assert "complete" in text
    assert text.count('class="row"') == len(result)
