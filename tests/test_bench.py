"""The benchmark measures every rival it names; how fast they are is not for a test to say."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from harness import call
from PIL import Image

from ggcn.data.pool import cores


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
    found = {}
    for part in report.split("\n\n**")[1:]:
        title, rows = part.split("**\n\n")
        head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows.splitlines()]
        found[title.split(":")[0]] = [dict(zip(head, line, strict=True)) for line in lines]
    return found


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
    found = tables(done.stdout)
    decoders = len({row["decoder"] for row in found["Decoders of JPEGs"]})
    pixels = {row["decoder"]: row["Pillow's pixels"] for row in found["Decoders of JPEGs"]}
    assert pixels["Pillow"] == pixels["simplejpeg"] == "yes"
    assert {title: len(rows) for title, rows in found.items()} == {
        "Decoders of JPEGs": 2 * decoders,
        "From shard to batch": 2 * 9,
        "From images to shards": 2 * (len({1, cores()}) + 2),
        "Start and resume": 6 + 3,
        "Large JPEGs": 4,
    }
    figures = [
        float(cell.replace(",", ""))
        for rows in found.values()
        for row in rows
        for head, cell in row.items()
        if "/" in head or "ms" in head
    ]
    assert len(figures) == 18 * 3 + len(found["From images to shards"]) * 2 + 9 * 2 + 4 * 4 + 2 * 2 * decoders
    assert all(0 < figure < math.inf for figure in figures)


def test_an_unreadable_image_is_said_before_anything_is_measured(images: Path) -> None:
    os.truncate(images / "7.png", 300)
    done = call("tools/bench.py", "data", "--images", images, "--size", 16)
    assert done.returncode == 2
    assert done.stderr == f"error: 1 images of {images} cannot be read; give whole ones\n"
