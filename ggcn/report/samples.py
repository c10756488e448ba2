"""Samples: the newest sheet, and the finest grid's samples over training."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ggcn import files
from ggcn.config.schema import Config
from ggcn.report import page
from ggcn.report.run_data import RunData
from ggcn.run.sample_images import WIDTH, thumbnails
from ggcn.run.sample_images import steps as by_step

MAX_SHEETS = 12
"""sheets of a run that are shown, evenly spaced"""
MAX_PIXELS = 8_000_000
"""pixels of a sheet without thumbnails that is decoded; runs write smaller ones, and larger ones are left out"""


@dataclass(frozen=True)
class Jpeg:
    """An image that can be embedded in HTML."""

    data: bytes
    """content of a JPEG file"""
    size: tuple[int, int]
    """width and height in pixels"""


def samples(data: RunData) -> Markup:
    """The newest sheet of samples, and the finest grid's samples over training."""
    paths = evenly_spaced(_by_step(data.status.run.samples), MAX_SHEETS)
    jpegs = [(_step_of(path), *_jpegs(path, data.status.run.path, data.status.config)) for path in paths]
    sheets = [(step, sheet) for step, sheet, _ in jpegs if sheet]
    if not sheets:
        return page.note("No samples yet.")
    step, sheet = sheets[-1]
    newest = page.jpeg(sheet.data, sheet.size, step, "sheet")
    rows = [(step, row) for step, _, row in jpegs if row]
    if len(rows) < 2:
        return newest
    note = page.note("Samples of the finest grid, from the same chain starts at every step.", soft=True)
    figures = [page.jpeg(row.data, row.size, step, "row") for step, row in rows]
    return newest + page.subheading("Over training") + note + page.scrolling(figures)


def newest_row(data: RunData) -> tuple[str, Jpeg] | None:
    """The newest sheet that can be shown: its step as text, and its samples of the finest grid or else all of it."""
    for path in reversed(_by_step(data.status.run.samples)):
        sheet, row = _jpegs(path, data.status.run.path, data.status.config)
        if shown := row or sheet:
            return _step_of(path), shown
    return None


def _by_step(folder: Path) -> list[Path]:
    """The paths of all sheets by step, those without a step in their names first."""
    numbered = list(by_step(folder).values())
    return sorted(set(folder.glob("step_*.png")) - set(numbered)) + numbered


def _jpegs(path: Path, run: Path, config: Config | None) -> tuple[Jpeg | None, Jpeg | None]:
    """A sheet and its finest row: from its thumbnails, or from the sheet itself if it is small and has none."""
    images = [_open(thumbnail, run, "JPEG") for thumbnail in thumbnails(path)]
    sheet, row = (_shrink(image) if image else None for image in images)
    if sheet and row:
        return sheet, row
    original = _open(path, run, "PNG")
    if original is None:
        return sheet, row
    finest = finest_row(original, config) if config else None
    return sheet or _shrink(original), row or (_shrink(finest) if finest else None)


def _open(path: Path, run: Path, kind: str) -> Image.Image | None:
    """An image of the format `kind` in the folder `run`; None where it is missing, damaged, too large, or outside of
    the folder: a symbolic link could otherwise put any image of the reader's into the report."""
    try:
        if not path.resolve().is_relative_to(run.resolve()):
            return None
        with files.open_regular(path) as file, Image.open(file, formats=[kind]) as image:
            return image.convert("RGB") if image.width * image.height <= MAX_PIXELS else None
    except (
        OSError,
        RuntimeError,  # a link to itself
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # what Pillow raises for damaged files
        return None


def _shrink(image: Image.Image) -> Jpeg:
    """The image as a JPEG, at most as wide as the page."""
    image = image.copy()
    image.info = {}  # or a comment would be copied
    image.thumbnail((WIDTH, image.height))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=88, subsampling=0)
    return Jpeg(data.getvalue(), image.size)


def evenly_spaced(paths: Sequence[Path], limit: int) -> list[Path]:
    """At most `limit` of the paths, evenly spaced, with the first and the last."""
    if len(paths) <= limit:
        return list(paths)
    return [paths[index * (len(paths) - 1) // (limit - 1)] for index in range(limit)]


def _step_of(path: Path) -> str:
    digits = path.stem.removeprefix("step_")
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem


def finest_row(sheet: Image.Image, config: Config) -> Image.Image | None:
    """The row of the finest grid's chain ends, without its label, of a sheet as the trainer writes it; None where the
    layout is another one."""
    title, margin, finest = 26, 4, config.model.grids[-1]
    sides = [size * max(1, max(64, finest) // size) for size in config.model.grids]
    bottom = title + sides[-1] + margin + sum(2 * (side + margin) for side in sides)
    buffer = sides[0] + margin if config.model.chain_init == "replay_buffer" else 0
    if sheet.height != bottom + buffer:
        return None
    left = sheet.width - margin - config.log.samples * (sides[-1] + 1) + 1
    return sheet.crop((max(left, 0), bottom - sides[-1] - margin, sheet.width - margin, bottom - margin))
