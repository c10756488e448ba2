"""How `tools/sample.py` writes images: as one grid, as labelled rows, or as a folder of PNGs."""

from math import ceil, sqrt
from pathlib import Path

from PIL import Image
from torch import Tensor

from ggcn import image_grid

COLUMNS = 16
"""images per row where results stand below their inputs"""


def is_folder(out: Path) -> bool:
    """Whether `out`, a name without an ending, stands for a folder of PNGs."""
    return out.suffix.lower() != ".png"


def save_images(images: Tensor, out: Path, first: int = 0) -> None:
    """Images [n, 3, h, w] as a grid with about as many columns as rows, or a folder of PNGs numbered from `first`."""
    if not is_folder(out):
        image_grid.save(image_grid.make_grid(images, ceil(sqrt(len(images))), scale_of(images)), out)
        return
    for number, pixels in enumerate(image_grid.to_bytes(images), first):
        image_grid.save(Image.fromarray(pixels), out / f"{number:06d}.png")


def save_rows(rows: Tensor, out: Path) -> None:
    """Rows [n, columns, 3, h, w] as one image, or a folder of numbered rows."""
    if not is_folder(out):
        image_grid.save(image_grid.make_grid(rows.flatten(0, 1), rows.shape[1], scale_of(rows)), out)
        return
    for number, row in enumerate(rows):
        image_grid.save(image_grid.make_grid(row, len(row)), out / f"{number:06d}.png")


def save_comparison(out: Path, rows: dict[str, Tensor], result: str) -> None:
    """Labelled rows of images, one below the other, COLUMNS images wide; or a folder of the row `result` alone."""
    if is_folder(out):
        save_images(rows[result], out)
        return
    count, size = rows[result].shape[0], rows[result].shape[-1]
    page = [
        (label, images[first : first + COLUMNS])
        for first in range(0, count, COLUMNS)
        for label, images in rows.items()
    ]
    image_grid.save(image_grid.labelled_rows(", ".join(rows), page, max(64, size)), out)


def scale_of(images: Tensor) -> int:
    """The factor by which images are enlarged, so that they have about 64 pixels a side at least."""
    return max(1, 64 // images.shape[-1])
