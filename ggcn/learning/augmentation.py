"""Random maps of coupled pairs, from which few images teach more.

One affine map T moves the start and the datum of a pair together, and the regression becomes
E |grad f(T x_t) - c(t) T(x1 - x0)|^2. Where T is orthogonal this is the augmentation within the energy, E(T x),
with a T for each pair. Chains begin at starts that no map has touched, so samples do not take after the maps, as they
would if only the data were augmented. The maps are those of DiffAugment (Zhao et al. 2020, arXiv 2006.10738).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from ggcn.config.schema import AugmentationConfig
from ggcn.distributed.lanes import Key, generator

SHIFT = 1 / 8
"""largest shift, as a fraction of the image's side"""
CUTOUT = 1 / 2
"""side of the square that is cut out, as a fraction of the image's"""
BRIGHTNESS, SATURATION, CONTRAST = 0.5, 1.0, 0.5
"""widths of the intervals from which an offset (around 0) and two factors (around 1) are drawn"""

MOST = 0.7
"""largest probability that adaptation chooses: energies must also see pairs as chains do, and at 0.9 they learn less"""
MEASURABLE = 0.05
"""R^2 on training images below which its ratio to another one is mostly noise"""


@dataclass(frozen=True)
class Augmentation:
    """The maps of n samples, each with numbers in [0, 1): the same ones for every grid."""

    shift: Tensor
    """[n, 2]; down and right"""
    cutout: Tensor
    """[n, 2]; the square's middle"""
    color: Tensor
    """[n, 3]; brightness, saturation and contrast"""
    applied: Tensor
    """bool [n]; the others keep their pairs as they are"""

    def apply(self, x: Tensor) -> Tensor:
        """T x for images x [n, c, size, size]."""
        moved = _cut_out(_shift(_recolor(x, self.color), self.shift), self.cutout)
        return torch.where(self.applied[:, None, None, None], moved, x)


def draw_augmentation(
    keys: Sequence[tuple[Key, ...]], width: int, probability: float, device: torch.device
) -> Augmentation:
    """Maps for `width` samples per key, each applied with `probability`."""
    numbers = np.concatenate([generator(*key).random((width, 8), dtype=np.float32) for key in keys])
    uniform = torch.from_numpy(numbers).to(device)
    return Augmentation(uniform[:, :2], uniform[:, 2:4], uniform[:, 4:7], uniform[:, 7] < probability)


def adapted(config: AugmentationConfig, probability: float, fit: Mapping[str, float]) -> float:
    """The probability after a measurement of R^2, {"r2/SIZE": .., "r2_heldout/SIZE": ..}, in [0, MOST]: the more the
    energies memorize, the higher; without held-out images as it is."""
    train, heldout = (
        [value for name, value in fit.items() if name.startswith(prefix)] for prefix in ("r2/", "r2_heldout/")
    )
    if not heldout:
        return probability
    excess = config.target_ratio * fmean(train) - fmean(heldout)
    # continuous in R^2, which ranks and machines round differently
    change = config.rate * excess / max(fmean(train), MEASURABLE)
    return min(max(probability + change, 0.0), MOST)


def _recolor(x: Tensor, color: Tensor) -> Tensor:
    brightness, saturation, contrast = (color - 0.5).T[:, :, None, None, None]
    x = x + BRIGHTNESS * brightness
    gray = x.mean(1, keepdim=True)
    x = gray + (1 + SATURATION * saturation) * (x - gray)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (1 + CONTRAST * contrast) * (x - mean)


def _shift(x: Tensor, shift: Tensor) -> Tensor:
    """Shifts by whole pixels; what comes in repeats the border."""
    size = x.shape[-1]
    pixels = ((2 * shift - 1) * (SHIFT * size + 0.5)).round().long()
    positions = torch.arange(size, device=x.device)
    rows, columns = ((positions - pixels[:, axis, None]).clamp(0, size - 1) for axis in (0, 1))
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return (
        x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    )


def _cut_out(x: Tensor, middle: Tensor) -> Tensor:
    size = x.shape[-1]
    positions = (torch.arange(size, device=x.device) + 0.5) / size
    rows, columns = ((positions - middle[:, axis, None]).abs() < CUTOUT / 2 for axis in (0, 1))
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
