"""What an energy is good for beside drawing: longer chains and films of them, walks through z, filling in missing
pixels, denoising.

Picture number i of a seed is the same whatever else is done with it, up to float rounding; networks that normalise
over lanes (upsampler.norm=lane) aside, which look at their neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import acos, sin

import torch
from torch import Tensor

from ggcn.config.grids import Grid
from ggcn.distributed.lanes import Key
from ggcn.errors import UserError
from ggcn.models.build import Upsamplers, frozen
from ggcn.models.pyramid import pyramid
from ggcn.models.upsampler import interpolate as interpolation
from ggcn.sampling.draw import draw
from ggcn.sampling.langevin import langevin, slope
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler

Keys = Sequence[tuple[Key, ...]]

FIT_STEPS, FIT_RATE, FIT_SD = 150, 0.1, 0.2
"""of the search for z: Adam's steps and learning rate, and how exactly known pixels are to be met (standard
deviation, pixels in [-1, 1])"""


@torch.inference_mode(False)
def film(sampler: Sampler, numbers: range, seed: int, stops: Sequence[int]) -> Tensor:
    """Pictures of a seed after each of `stops` Langevin steps on the finest grid, rising numbers:
    [len(numbers), len(stops), c, size, size].

    A stop at the model's own number of steps is the picture that Sampler.draw gives.
    """
    keys = _keys(seed, numbers, sampler)
    states = _states(sampler, sampler.source(keys), Noise(keys, sampler.device), stops)
    return states[: len(numbers)].cpu()


def stages(steps: int, count: int) -> list[int]:
    """`count` numbers of steps, evenly spaced from 0 to `steps`; equal ones fall together."""
    return sorted({round(place * steps / max(count - 1, 1)) for place in range(count)} | {steps})


@torch.inference_mode(False)
def interpolate(sampler: Sampler, rows: range, seed: int, count: int, steps: int | None = None) -> Tensor:
    """Row r: `count` pictures on the great circle from the z of picture 2r of a seed to that of picture 2r + 1,
    [len(rows), count, c, size, size]. All of a row have the chain noise of its first.

    steps: of the finest grid's chains, if not the model's own. Raises UserError for a model without z.
    """
    model = sampler.config.model
    if model.chain_init != "hidden":
        raise UserError(
            f"there is no z to interpolate in {model.name}, whose chains start from {model.chain_init}; "
            "take a model with model.chain_init=hidden, such as ggcn or coopnets"
        )
    first, last = (sampler.source([_key(seed, 2 * row + side) for row in rows]) for side in (0, 1))
    shares = [place / max(count - 1, 1) for place in range(count)]
    z = torch.stack([spherical(first, last, share) for share in shares], 1).flatten(0, 1)
    keys = [_key(seed, 2 * row) for row in rows for _ in range(count)]
    stops = [sampler.grids[-1].steps if steps is None else steps]
    z, keys = _whole_lanes(z, sampler), [*keys, *keys[-1:] * (-len(keys) % sampler.lane_width)]
    states = _states(sampler, z, Noise(keys, sampler.device), stops)
    return states[: len(rows) * count, 0].unflatten(0, (len(rows), count)).cpu()


def spherical(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Between z's [n, hidden] along the great circle, their lengths in between too: N(0, I) keeps its length.

    (Shoemake 1985: sin((1 - t) w) / sin w a + sin(t w) / sin w b for the angle w between a and b.)
    """
    parts = []
    for a, b in zip(first, last, strict=True):
        cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1))
        angle = acos(cosine)
        if sin(angle) < 1e-6:
            parts.append(torch.lerp(a, b, share))
        else:
            parts.append((sin((1 - share) * angle) * a + sin(share * angle) * b) / sin(angle))
    return torch.stack(parts)


@dataclass(frozen=True)
class Known:
    """What is known of pictures on one grid."""

    pixels: Tensor
    """[n, c, size, size]"""
    mask: Tensor
    """[size, size], True where a pixel is known"""

    def put(self, x: Tensor) -> Tensor:
        """x [n, c, size, size] with the known pixels put back."""
        return torch.where(self.mask, self.pixels, x)


def known(images: Tensor, mask: Tensor, sizes: Sequence[int], noise: Noise, sd: float) -> list[Known]:
    """Per grid, what images [n, c, h, h] tell where mask [h, h] is True: pixels with noise of standard deviation
    `sd`, as in training, and on coarser grids those pixels that are known wholly."""
    levels = pyramid(images, sizes)
    masks = pyramid(mask[None, None].float(), sizes)
    return [
        Known(level + sd * noise.normal(*level.shape), (part[0, 0] == 1))
        for level, part in zip(levels, masks, strict=True)
    ]


@torch.inference_mode(False)
def inpaint(
    sampler: Sampler, images: Tensor, mask: Tensor, first: int, seed: int, steps: int | None = None
) -> Tensor:
    """Images [n, c, size, size] in [-1, 1] with the pixels where mask [size, size] is False filled in by chains
    that see the others, coarse to fine; the known ones come back as they were. On the CPU.

    first: the number of the first image, which its noise depends on; steps: of the finest grid's chains, if not
    the model's own.
    """
    count, keys = len(images), _keys(seed, range(first, first + len(images)), sampler)
    images, mask = _whole_lanes(images.to(sampler.device), sampler), mask.to(sampler.device)
    noise = Noise(keys, sampler.device)
    *coarse, finest = sampler.grids
    grids = [*coarse, finest if steps is None else replace(finest, steps=steps)]
    sizes, sd = [grid.size for grid in grids], sampler.config.train.data_noise
    facts = known(images, mask, sizes, noise, sd)
    x = _fitting(sampler, keys, facts[0])
    with frozen(sampler.energies), frozen(sampler.upsamplers), torch.no_grad():
        for number, (grid, fact) in enumerate(zip(grids, facts, strict=True)):
            start = sampler.upsamplers.start(number, x)
            x = pinned(sampler.energies.prepared(number), start, fact, grid, noise)
    return torch.where(mask, images, x)[:count].cpu()


def pinned(
    energy: Callable[[Tensor], Tensor], start: Tensor, fact: Known, grid: Grid, noise: Noise
) -> Tensor:
    """Where Langevin chains end whose known pixels are put back after every step; they sample the energy's
    conditional law."""
    x, once = fact.put(start), replace(grid, steps=1)
    for _ in range(grid.steps):
        x = fact.put(langevin(energy, x, once, noise)[0])
    return x


def _fitting(sampler: Sampler, keys: Keys, fact: Known) -> Tensor:
    """A source for the coarsest grid that suits what is known there."""
    source = sampler.source(keys)
    if not fact.mask.any():  # the finer grids may know more
        return source
    if sampler.config.model.chain_init == "hidden":
        return fitted(sampler.upsamplers, source, fact)
    if sampler.upsamplers.colours:
        return fact.pixels[:, :, fact.mask].mean(2)[:, :, None, None]
    return source


def fitted(upsamplers: Upsamplers, z: Tensor, fact: Known) -> Tensor:
    """z [n, hidden] moved to where U_0(z) shows the known pixels y: by Adam to the least
    |U_0(z) - y|^2 / (2 FIT_SD^2) + |z|^2 / 2, the most likely z under N(0, I)."""
    z = z.detach().clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=FIT_RATE)
    with frozen(upsamplers), torch.enable_grad():
        for _ in range(FIT_STEPS):
            adam.zero_grad()
            miss = (upsamplers.start(0, z) - fact.pixels)[:, :, fact.mask]
            (miss.square().sum() / (2 * FIT_SD**2) + z.square().sum() / 2).backward()
            adam.step()
    return z.detach()


@torch.inference_mode(False)
def denoise(
    sampler: Sampler,
    images: Tensor,
    sd: float,
    first: int,
    seed: int,
    steps: int | None = None,
    weight: float | None = None,
) -> Tensor:
    """Pictures x behind noisy ones y, images [n, c, size, size] in [-1, 1] with noise of standard deviation `sd`:
    gradient descent on weight E(x) + |x - y|^2 / (2 sd^2) on the finest grid, from what the up-samplers make of y
    on the grid before, whose pixels are means of many. On the CPU.

    first: the number of the first image; steps: if not the model's own; weight: if not `trust` of the start.
    """
    count, finest = len(images), sampler.grids[-1]
    keys = _keys(seed, range(first, first + count), sampler)
    y = _whole_lanes(images.to(sampler.device), sampler)
    start, steps = _cleaner(sampler, y, keys), finest.steps if steps is None else steps
    weights = (
        trust(start, y, sd, steps, finest.step_size)
        if weight is None
        else torch.full_like(y[:, 0, 0, 0], weight)
    )
    energy = sampler.energies.prepared(len(sampler.grids) - 1)
    with frozen(sampler.energies):
        return descend(energy, start, y, sd, weights, steps, finest.step_size)[:count].cpu()


def _cleaner(sampler: Sampler, y: Tensor, keys: Keys) -> Tensor:
    """A picture with less noise than y, and less detail."""
    sizes = sampler.config.model.grids
    with torch.no_grad():
        if len(sizes) > 1:
            return sampler.upsamplers.start(len(sizes) - 1, pyramid(y, sizes[-2:-1])[0])
    if sampler.config.model.chain_init != "hidden":
        return interpolation(pyramid(y, [sizes[0] // 2])[0], sizes[0])
    all_known = torch.ones(y.shape[2:], dtype=torch.bool, device=y.device)
    z = fitted(sampler.upsamplers, sampler.source(keys), Known(y, all_known))
    with torch.no_grad():
        return sampler.upsamplers.start(0, z)


def trust(start: Tensor, y: Tensor, sd: float, steps: int, step_size: float) -> Tensor:
    """The weight of the energy [n] with which `steps` of `descend` lead from `start` towards y as far as a Gaussian
    N(start, v) for the clean picture would: the share v / (v + sd^2) of the way.

    v, how far `start` is from the clean picture, is what |start - y|^2 has beyond the noise.
    """
    v = ((start - y).square().flatten(1).mean(1) - sd**2).clamp(min=1e-4 * sd**2)
    left = (sd**2 / (v + sd**2)) ** (1 / max(steps, 1))
    return left / (1 - left) * step_size / sd**2


def descend(
    energy: Callable[[Tensor], Tensor],
    start: Tensor,
    y: Tensor,
    sd: float,
    weight: Tensor,
    steps: int,
    step_size: float,
) -> Tensor:
    """`steps` of gradient descent on weight E(x) + |x - y|^2 / (2 sd^2) from `start` [n, c, h, w]; weight: [n].

    step_size: one that suits E alone; that of the sum is 1 / (weight / step_size + 1 / sd^2).
    """
    x, weight = start.clone(), weight[:, None, None, None]
    rate = 1 / (weight / step_size + 1 / sd**2)
    for _ in range(steps):
        x = x - rate * (weight * slope(energy, x) + (x - y) / sd**2)
    return x.detach()


def energies(sampler: Sampler, images: Tensor) -> Tensor:
    """Energies in fp32 of images [n, c, size, size] in [-1, 1] on every grid, coarser ones of means of pixels:
    [n, grids], on the CPU; low is likely, and only values of one grid compare."""
    levels = pyramid(images.to(sampler.device), sampler.config.model.grids)
    with torch.no_grad():
        columns = [sampler.energies.energy(number, level, "fp32") for number, level in enumerate(levels)]
    return torch.stack(columns, 1).cpu()


def psnr(images: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Peak signal to noise ratio in dB of images [n, c, h, h] in [-1, 1], over all pixels or where [h, h]."""
    miss = (images.clamp(-1, 1) - truth).square()
    mean = (miss if where is None else miss[:, :, where]).mean()
    return float(10 * torch.log10(4 / mean))


def _key(seed: int, number: int) -> tuple[Key, ...]:
    """As in Sampler.draw."""
    return (seed, "sample", number)


def _keys(seed: int, numbers: range, sampler: Sampler) -> list[tuple[Key, ...]]:
    """Of whole lanes."""
    extra = -len(numbers) % sampler.lane_width
    return [_key(seed, number) for number in range(numbers.start, numbers.stop + extra)]


def _whole_lanes(images: Tensor, sampler: Sampler) -> Tensor:
    """With the last one repeated until the lanes are full."""
    extra = -len(images) % sampler.lane_width
    return torch.cat([images, images[-1:].expand(extra, *images.shape[1:])])


def _states(sampler: Sampler, source: Tensor, noise: Noise, stops: Sequence[int]) -> Tensor:
    """[n, len(stops), c, size, size]: the finest grid's chains after so many steps each."""
    *coarse, finest = sampler.grids
    hidden, number = sampler.config.model.hidden_chain, len(coarse)
    grids = [*coarse, replace(finest, steps=0)]
    x = draw(sampler.energies, sampler.upsamplers, grids, hidden, source, noise).starts[-1]
    energy, found = sampler.energies.prepared(number), []
    with frozen(sampler.energies), torch.no_grad():
        for begin, stop in pairwise([0, *stops]):
            x, _ = langevin(energy, x, replace(finest, steps=stop - begin), noise)
            found.append(x)
    return torch.stack(found, 1)
