"""What the samples look like: the newest picture, and the finest grid over training."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ggcn import files
from ggcn.config.schema import Config
from ggcn.report import page
from ggcn.report.facts import Facts
from ggcn.run.sample_images import WIDTH, thumbnails
from ggcn.run.sample_images import steps as by_step

STRIPS = 12
"""pictures shown of a run, evenly spaced"""


MOST_PIXELS = 8_000_000
"""of a picture without thumbnails that is decoded: such as this project writes; larger ones are left out"""


@dataclass(frozen=True)
class Shot:
    """A picture as HTML can hold it."""

    data: bytes
    """of a JPEG file"""
    size: tuple[int, int]
    """width and height"""


def pictures(facts: Facts) -> str:
    """The newest picture, and the finest grid's samples over training."""
    paths = spread(_by_step(facts.status.run.samples), STRIPS)
    shots = [(_step_of(path), *_shots(path, facts.status.run.path, facts.status.config)) for path in paths]
    sheets = [(step, sheet) for step, sheet, _ in shots if sheet]
    if not sheets:
        return page.note("No picture yet.")
    newest = page.jpeg(sheets[-1][1].data, sheets[-1][1].size, sheets[-1][0], "strip")
    rows = [(step, row) for step, _, row in shots if row]
    if len(rows) < 2:
        return newest
    words = page.note("The finest grid's samples, from the same start every time.", soft=True)
    strips = "".join(page.jpeg(row.data, row.size, step, "row") for step, row in rows)
    return f'{newest}<h3>Over training</h3>{words}<div class="wide">{strips}</div>'


def _by_step(folder: Path) -> list[Path]:
    """All pictures, those whose names have no step first."""
    numbered = list(by_step(folder).values())
    return sorted(set(folder.glob("step_*.png")) - set(numbered)) + numbered


def _shots(path: Path, run: Path, config: Config | None) -> tuple[Shot | None, Shot | None]:
    """A picture and its finest row: from thumbnails, or from itself where it is small and has none."""
    kept = [_open(place, run, "JPEG") for place in thumbnails(path)]
    sheet, row = (_small(picture) if picture else None for picture in kept)
    if sheet and row:
        return sheet, row
    whole = _open(path, run, "PNG")
    if whole is None:
        return sheet, row
    finest = finest_row(whole, config) if config else None
    return sheet or _small(whole), row or (_small(finest) if finest else None)


def _open(path: Path, run: Path, kind: str) -> Image.Image | None:
    """A picture of this kind in the folder `run`; None where there is none, it is damaged, too large to
    decode it for a report, or lies outside, where a link may show any picture of the reader's."""
    try:
        if not path.resolve().is_relative_to(run.resolve()):
            return None
        with files.open_regular(path) as file, Image.open(file, formats=[kind]) as image:
            return image.convert("RGB") if image.width * image.height <= MOST_PIXELS else None
    except (
        OSError,
        RuntimeError,  # a link to itself
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # what Pillow raises for damaged files
        return None


def _small(picture: Image.Image) -> Shot:
    """A picture as a JPEG of at most a page's width."""
    picture = picture.copy()
    picture.info = {}  # a comment would be copied
    picture.thumbnail((WIDTH, picture.height))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88, subsampling=0)
    return Shot(data.getvalue(), picture.size)


def spread(found: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly spaced, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]


def _step_of(path: Path) -> str:
    digits = path.stem.removeprefix("step_")
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem


def finest_row(sheet: Image.Image, config: Config) -> Image.Image | None:
    """Of a picture as Trainer.picture writes it, the row of the finest grid's chain ends without its label; None
    where it is laid out otherwise."""
    title, margin, finest = 26, 4, config.model.grids[-1]
    sides = [size * max(1, max(64, finest) // size) for size in config.model.grids]
    bottom = title + sides[-1] + margin + sum(2 * (side + margin) for side in sides)
    buffer = sides[0] + margin if config.model.chain_init == "replay_buffer" else 0
    if sheet.height != bottom + buffer:
        return None
    left = sheet.width - margin - config.log.samples * (sides[-1] + 1) + 1
    return sheet.crop((max(left, 0), bottom - sides[-1] - margin, sheet.width - margin, bottom - margin))
