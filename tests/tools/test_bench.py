"""The benchmark measures every rival it names; how fast they are is not for a test to say."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import call
from PIL import Image

from ggcn.shards.pool import cores


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 80 small images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(80):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def tables(report: str) -> dict[str, list[dict[str, str]]]:
    """Title -> rows, each by its column heads."""
    result = {}
    for part in report.split("\n\n**")[1:]:
        title, rows = part.split("**\n\n")
        head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows.splitlines()]
        result[title.split(":")[0]] = [dict(zip(head, line, strict=True)) for line in lines]
    return result


def test_a_large_data_set_is_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    done = call("tools/bench.py", "index", "--samples", 250_000, "--shards", 250, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "250,000 samples in 250 shards: 0 MB of manifest, 3 MB of index" in done.stdout
    (rows,) = tables(done.stdout).values()
    assert len(rows) == 2
    assert all(float(row["MB of its own"]) < 100 for row in rows)
    assert not list(tmp_path.iterdir())
    done = call("tools/bench.py", "index", "--samples", 10, "--shards", 250)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_every_rival_gets_its_row_and_a_finite_ratio(images: Path, tmp_path: Path) -> None:
    size = ["--size", 16, "--samples", 70, "--large", 16, 32, "--decoders", 8, 16]
    done = call(
        "tools/bench.py",
        "data",
        "--images",
        images,
        *size,
        "--seconds",
        0.01,
        "--rounds",
        2,
        "--out",
        tmp_path / "a.md",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.md").read_text() == done.stdout
    assert f"bench.py data --images {images}" in done.stdout
    result = tables(done.stdout)
    decoders = len({row["decoder"] for row in result["Decoders of JPEGs"]})
    pixels = {row["decoder"]: row["Pillow's pixels"] for row in result["Decoders of JPEGs"]}
    assert pixels["Pillow"] == pixels["simplejpeg"] == "yes"
    assert {title: len(rows) for title, rows in result.items()} == {
        "Decoders of JPEGs": 2 * decoders,
        "From shard to batch": 2 * 9,
        "From images to shards": 2 * (len({1, cores()}) + 2),
        "Start and resume": 6 + 3,
        "Large JPEGs": 4,
    }
    figures = [
        float(cell.replace(",", ""))
        for rows in result.values()
        for row in rows
        for head, cell in row.items()
        if "/" in head or "ms" in head
    ]
    assert (
        len(figures) == 18 * 3 + len(result["From images to shards"]) * 2 + 9 * 2 + 4 * 4 + 2 * 2 * decoders
    )
    assert all(0 < figure < math.inf for figure in figures)


def test_an_unreadable_image_is_said_before_anything_is_measured(images: Path) -> None:
    os.truncate(images / "7.png", 300)
    done = call("tools/bench.py", "data", "--images", images, "--size", 16)
    assert done.returncode == 2
    assert done.stderr == f"error: 1 images of {images} cannot be read; leave them out\n"


def test_a_chain_is_measured_beside_its_rivals_and_its_convolutions() -> None:
    sizes = ["--sizes", 8, 32, "--width", 8, "--batch", 4, "--lanes", 2, "--steps", 2, "--rounds", 2]
    done = call("tools/bench.py", "chain", *sizes)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("\n\n**")[1:]
    assert [part.split(":")[0] for part in parts[::2]] == [
        "Convolutions alone, forward and input gradient, ms (GFLOP/s)"
    ] * 2
    rows = tables(done.stdout)["A Langevin step"]
    names = [row["chain"] for row in rows]
    assert [name for name in names if name != "torchebm"] == [
        "plain loop",
        "plain loop, bf16 autocast",
        "this project, fp32",
        "this project, bf16",
    ]
    for row in rows:
        ratios = [float(cell) for head, cell in row.items() if head.endswith("/ it")]
        assert len(ratios) == 1 + ("torchebm" in names)
        assert all(0 < ratio < math.inf for ratio in ratios)
        assert 0 < float(row["of convolutions"].split()[0]) < math.inf
        assert float(row["end differs"]) < (0.05 if "bf16" in row["chain"] else 1e-4)


def test_a_training_step_is_told_by_phases_that_add_up() -> None:
    args = ["model.grids=[4,8]", "model.energy.width=8", "model.upsampler.width=16", "train.batch=16"]
    done = call("tools/bench.py", "step", *args, "--rounds", 2)
    assert done.returncode == 0, done.stderr
    times = {row["phase"]: float(row["ms"]) for row in tables(done.stdout)["A training step"]}
    whole, work = times.pop("all"), times.pop("chains and learning")
    assert times["learn the energy"] < times.pop("mean step, chains in one of 20") < whole
    assert 0 < times.pop("of it: up-sample") < times["sample"]
    assert sum(times.values()) == pytest.approx(whole, abs=0.5)
    assert 0 < work < whole


def test_a_batch_that_lanes_cannot_share_is_refused() -> None:
    done = call("tools/bench.py", "chain", "--batch", 10, "--lanes", 4)
    assert done.returncode == 2
    assert done.stderr == "error: --batch 10 must be a multiple of --lanes 4\n"
