"""The sheets of samples of a run in RUN/samples: their names, thumbnails, and pruning. Imports no torch."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ggcn import files

THUMBNAILS = "thumbnails"
"""folder next to the sheets, with their thumbnails for the report"""
WIDTH = 1400
"""maximum width of a thumbnail in pixels"""
STEP_KEY = "ggcn step"
"""key of the step in the PNG text of a sheet that a run wrote itself"""


def write(sheet: Image.Image, row: Image.Image, path: Path, step: int) -> None:
    """Writes the sheet of a step to `path`, and thumbnails of it and of its finest `row` next to it."""
    for thumbnail_path, image in zip(thumbnails(path), (sheet, row), strict=True):
        thumbnail = image.copy()
        thumbnail.thumbnail((WIDTH, 2 * WIDTH))
        with files.atomic_write(thumbnail_path) as temporary:
            thumbnail.save(temporary, "JPEG", quality=88, subsampling=0)
    info = PngInfo()
    info.add_text(STEP_KEY, str(step))
    with files.atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=info)


def thumbnails(path: Path) -> tuple[Path, Path]:
    """The paths of a sheet's thumbnails: of the sheet, and of its row of the finest grid's samples."""
    folder = path.parent / THUMBNAILS
    return folder / f"{path.stem}.jpg", folder / f"{path.stem}-finest.jpg"


def steps(folder: Path) -> dict[int, Path]:
    """{step: path} of the sheets in a run's folder, ordered by step."""
    digits = {path: path.stem.removeprefix("step_") for path in folder.glob("step_*.png")}
    paths = {int(step): path for path, step in digits.items() if step.isdecimal()}
    return dict(sorted(paths.items()))


def prune(folder: Path, kept: int, every: int) -> None:
    """Removes sheets, with their thumbnails, that are neither among the `kept` newest nor among at most as many older
    ones at even distances: `every` steps times the smallest power of two that leaves few enough. kept=0: all stay.

    Sheets at a larger distance are among those at a smaller one, so the history stays even. Files that the run did not
    write stay.
    """
    sheets = steps(folder)
    older = list(sheets)[: -kept or None] if kept else []
    distance = every
    while older and older[-1] // distance >= kept:
        distance *= 2
    first = {step // distance: step for step in reversed(older)}
    for step in older:
        if first[step // distance] != step and _is_own(sheets[step], step):
            for path in (sheets[step], *thumbnails(sheets[step])):
                path.unlink(missing_ok=True)


def _is_own(path: Path, step: int) -> bool:
    """Whether a run wrote this file for this step."""
    try:
        with (
            files.open_regular(path) as file,
            Image.open(file, formats=["PNG"]) as image,
        ):  # reads only the header
            return not path.is_symlink() and image.info.get(STEP_KEY) == str(step)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
