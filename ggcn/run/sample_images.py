"""The pictures of a run in RUN/samples: their names, their thumbnails, and which of them stay. Takes no torch."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ggcn import files

THUMBNAILS = "thumbnails"
"""folder, beside a run's pictures, of small ones for its report"""
WIDTH = 1400
"""pixels of a thumbnail at most"""
WRITTEN = "ggcn step"
"""text in a PNG that a run wrote itself"""


def keep(page: Image.Image, row: Image.Image, path: Path, step: int) -> None:
    """Writes the picture of a step to `path`, and thumbnails of it and of its finest row beside it."""
    for place, picture in zip(thumbnails(path), (page, row), strict=True):
        small = picture.copy()
        small.thumbnail((WIDTH, 2 * WIDTH))
        with files.atomic_write(place) as temporary:
            small.save(temporary, "JPEG", quality=88, subsampling=0)
    facts = PngInfo()
    facts.add_text(WRITTEN, str(step))
    with files.atomic_write(path) as temporary:
        page.save(temporary, format="PNG", pnginfo=facts)


def thumbnails(path: Path) -> tuple[Path, Path]:
    """Where the thumbnails of a run's picture lie: of all of it, and of the finest grid's samples."""
    folder = path.parent / THUMBNAILS
    return folder / f"{path.stem}.jpg", folder / f"{path.stem}-finest.jpg"


def steps(folder: Path) -> dict[int, Path]:
    """The pictures in a run's folder by step, in their order."""
    numbers = {path: path.stem.removeprefix("step_") for path in folder.glob("step_*.png")}
    found = {int(number): path for path, number in numbers.items() if number.isdecimal()}
    return dict(sorted(found.items()))


def prune(folder: Path, kept: int, every: int) -> None:
    """Removes pictures of a run, with their thumbnails, that are neither among the `kept` newest nor among as many
    older ones at even distances: `every` steps times the least power of two that leaves few enough. 0: all stay.

    What was kept with larger distances was kept with smaller ones before, so the history stays even. Files that
    the run did not write stay.
    """
    found = steps(folder)
    older = list(found)[: -kept or None] if kept else []
    distance = every
    while older and older[-1] // distance >= kept:
        distance *= 2
    first = {step // distance: step for step in reversed(older)}
    for step in older:
        if first[step // distance] != step and _own(found[step], step):
            for path in (found[step], *thumbnails(found[step])):
                path.unlink(missing_ok=True)


def _own(path: Path, step: int) -> bool:
    """Whether a run wrote this file, for this step."""
    try:
        with files.open_regular(path) as file, Image.open(file, formats=["PNG"]) as picture:  # the head alone
            return not path.is_symlink() and picture.info.get(WRITTEN) == str(step)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
