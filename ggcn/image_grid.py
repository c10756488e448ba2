"""Grids of images, and labelled rows of them, as PNG files."""

from collections.abc import Sequence
from math import ceil, isqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ggcn import files

MARGIN = 4
BACKGROUND = (255, 255, 255)
MAX_PIXELS = 7_500_000
"""in all images of labelled rows; with labels and title a page stays below 8 million"""
MIN_SIDE = 128
"""side in pixels below which images are not shrunk to fit a page: fewer of them are shown instead"""


def to_bytes(images: Tensor) -> np.ndarray:
    """Images [n, 3, h, w] in [-1, 1], clipped, as uint8 [n, h, w, 3]."""
    scaled = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def make_grid(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images [n, 3, h, w] in reading order, `columns` in a row, each pixel repeated `scale` times both ways."""
    tiles = to_bytes(images).repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1] + 1, tiles.shape[2] + 1
    page = Image.new("RGB", (columns * width - 1, ceil(len(tiles) / columns) * height - 1), BACKGROUND)
    for number, tile in enumerate(tiles):
        page.paste(Image.fromarray(tile), (number % columns * width, number // columns * height))
    return page


def labelled_rows(title: str, rows: Sequence[tuple[str, Tensor]], side: int) -> Image.Image:
    """One row of images per label, each enlarged by an integer factor to at most `side` pixels, or averaged down to
    them, with a title on top. Where that would exceed MAX_PIXELS, images are smaller, then fewer."""
    font = ImageFont.load_default(15)
    side, columns = _layout(len(rows), max(len(images) for _, images in rows), side)
    strips = [(label, image_row(images[:columns], side)) for label, images in rows]
    gutter = MARGIN * 2 + max(int(font.getlength(label)) for label, _ in strips)
    width = gutter + max(strip.width for _, strip in strips) + MARGIN
    height = 26 + sum(strip.height + MARGIN for _, strip in strips)
    page = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 4), title, fill="black", font=font)
    top = 26
    for label, strip in strips:
        pen.text((MARGIN, top + strip.height // 2 - 9), label, fill="black", font=font)
        page.paste(strip, (gutter, top))
        top += strip.height + MARGIN
    return page


def image_row(images: Tensor, side: int) -> Image.Image:
    """A row of images [n, 3, h, h], enlarged by an integer factor or averaged down to at most `side` pixels."""
    small = images if images.shape[-1] <= side else adaptive_avg_pool2d(images.detach().float(), side)
    return make_grid(small, len(small), max(1, side // small.shape[-1]))


def _layout(rows: int, columns: int, side: int) -> tuple[int, int]:
    """The side of an image in pixels, and how many there are in a row, such that all have at most MAX_PIXELS."""
    largest = min(side, isqrt(MAX_PIXELS // (rows * columns)) - 1)  # less the separator between images
    if largest >= min(side, MIN_SIDE):
        return largest, columns
    side = min(side, MIN_SIDE)
    return side, min(max(MAX_PIXELS // (rows * (side + 1) ** 2), 1), columns)


def save(image: Image.Image, path: Path) -> None:
    """Writes a PNG atomically."""
    with files.atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
