"""What the samples look like: the newest picture, and the finest grid over training."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ggcn.config import Config
from ggcn.report import page
from ggcn.report.facts import Facts

STRIPS = 12
"""pictures shown of a run, evenly spaced"""


def pictures(facts: Facts) -> str:
    """The newest picture, and the finest grid's samples over training."""
    paths = spread(sorted(facts.status.run.samples.glob("step_*.png")), STRIPS)
    shots = [(_step_of(path), sheet) for path in paths if (sheet := _open(path))]
    if not shots:
        return page.note("No picture yet.")
    newest = page.picture(shots[-1][1], shots[-1][0], "strip")
    config = facts.status.config
    rows = [(step, row) for step, sheet in shots if config and (row := finest_row(sheet, config))]
    if len(rows) < 2:
        return newest
    words = page.note("The finest grid's samples, from the same start every time.", soft=True)
    strips = "".join(page.picture(row, step, "row") for step, row in rows)
    return f'{newest}<h3>Over training</h3>{words}<div class="wide">{strips}</div>'


def spread(found: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly spaced, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]


def _step_of(path: Path) -> str:
    digits = path.stem.removeprefix("step_")
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem


def _open(path: Path) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
        return None


def finest_row(sheet: Image.Image, config: Config) -> Image.Image | None:
    """Of a picture as Trainer.picture writes it, the row of the finest grid's chain ends without its label; None
    where it is laid out otherwise."""
    title, margin, finest = 26, 4, config.model.grids[-1]
    sides = [size * max(1, max(64, finest) // size) for size in config.model.grids]
    bottom = title + sides[-1] + margin + sum(2 * (side + margin) for side in sides)
    bank = sides[0] + margin if config.model.start == "bank" else 0
    if sheet.height != bottom + bank:
        return None
    left = sheet.width - margin - config.log.pictures * (sides[-1] + 1) + 1
    return sheet.crop((max(left, 0), bottom - sides[-1] - margin, sheet.width - margin, bottom - margin))
