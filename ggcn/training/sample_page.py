"""The images of samples that a run writes while it trains."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ggcn import image_grid
from ggcn.run import sample_images
from ggcn.sampling.sampler import Sampler

Row = tuple[str, Tensor]
"""a label, and images [n, c, h, w] in [-1, 1]"""


def draw_rows(sampler: Sampler, count: int, images: Tensor, replay_buffer: Tensor | None) -> list[Row]:
    """Data, chain starts and chain ends of every grid, from the same z at every step, and persistent chains where
    there are any; `count` of each. images: uint8 [n, c, h, h]; replay_buffer: [n, c, size, size]."""
    particles = sampler.draw(0, count, sampler.config.seed)
    rows = [("data", images[:count].float() / 127.5 - 1)]
    for grid, start, end in zip(sampler.grids, particles.starts, particles.ends, strict=True):
        rows += [(f"{grid.size} px start", start[:count]), (f"{grid.size} px refined", end[:count])]
    if replay_buffer is not None:
        rows += [("replay buffer", replay_buffer[:count])]
    return rows


def render(sampler: Sampler, step: int, rows: Sequence[Row]) -> tuple[Image.Image, Image.Image]:
    """The page of all rows with a title, and the row of the finest grid's chain ends."""
    chains = ", ".join(str(grid.steps) for grid in sampler.grids)
    title = f"{sampler.config.run}, step {step}, averaged weights, Langevin steps per grid: {chains}"
    page = image_grid.labelled_rows(title, rows, side=max(64, sampler.grids[-1].size))
    finest = rows[2 * len(sampler.grids)][1]
    width = max(sample_images.WIDTH // len(finest) - 1, 8)
    return page, image_grid.image_row(finest, min(width, max(64, finest.shape[-1])))
