"""Top-down up-samplers: hidden z to the coarsest grid, and each grid to the next."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

from ggcn.config.schema import UpsamplerConfig
from ggcn.models.init import keep_variance
from ggcn.precision import widen

SLOPED = nn.LeakyReLU(0.2)
"""the up-samplers' activation"""


class LaneNorm(nn.Module):
    """Batch normalisation whose batch is a lane, so that it does not depend on the number of ranks.

    The module must be told how many samples a lane has (`width`); there are no running statistics.
    """

    def __init__(self, channels: int, width: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """x [lanes * width, channels, height, width] -> the same shape and dtype."""
        lanes = widen(x).unflatten(0, (-1, self.width))
        variance, mean = torch.var_mean(lanes, dim=(1, 3, 4), keepdim=True, correction=0)
        normal = (lanes - mean) * torch.rsqrt(variance + 1e-5)
        return (normal * self.weight + self.bias).flatten(0, 1).to(x.dtype)


def normalization(kind: str, width: int) -> Callable[[int], nn.Module]:
    """A factory of normalisation layers by number of channels; `width` is the samples per lane."""
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "none": lambda channels: nn.Identity(),
        "group": lambda channels: nn.GroupNorm(8, channels),
        "lane": lambda channels: LaneNorm(channels, width),
    }
    return kinds[kind]


def _climb(
    size: int, goal: int, width: int, config: UpsamplerConfig, norm: Callable
) -> tuple[nn.Sequential, int]:
    """Layers that double the image until `goal`, halving the channels; and the channels they end with."""
    layers = [norm(width), SLOPED]
    while size < goal:
        narrower = max(width // 2, config.min_width)
        layers += [
            nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1),
            norm(narrower),
            SLOPED,
        ]
        width, size = narrower, 2 * size
    return nn.Sequential(*layers), width


class LinearBase(nn.Module):
    """A linear map that is fitted to the training pictures once, and not learned; 0 until then."""

    weight: Tensor
    bias: Tensor

    def __init__(self, given: int, channels: int, goal: int) -> None:
        super().__init__()
        self.shape = (channels, goal, goal)
        self.register_buffer("weight", torch.zeros(channels * goal**2, given))
        self.register_buffer("bias", torch.zeros(channels * goal**2))

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """weight [channels * goal^2, given], bias [channels * goal^2]."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ...], of `given` numbers each -> [n, channels, goal, goal], float32 whatever the autocast: a
        regression lives on small differences."""
        with torch.autocast(x.device.type, enabled=False):
            flat = nn.functional.linear(widen(x).flatten(1), widen(self.weight), widen(self.bias))
        return flat.unflatten(1, self.shape)


LARGEST = 2**24
"""numbers in a linear map between two grids, 64 MB; 16 to 64 px has 9 million, and pictures that need more have too
few aligned parts to gain from one"""


def linear_base(given: int, channels: int, goal: int, kind: str) -> LinearBase | None:
    """The linear map below an up-sampler of this kind, or None."""
    fits = given * channels * goal**2 <= LARGEST
    return LinearBase(given, channels, goal) if kind == "fitted" and fits else None


class HiddenUpsampler(nn.Module):
    """U_0: hidden z to an image of the coarsest grid: a network, or what it adds to a linear map of z."""

    def __init__(self, size: int, channels: int, config: UpsamplerConfig, norm: Callable) -> None:
        super().__init__()
        self.base = linear_base(config.z_dim, channels, size, config.base)
        self.project = nn.Linear(config.z_dim, config.width * 16)
        self.climb, width = _climb(4, size, config.width, config, norm)
        keep_variance(self, SLOPED)
        self.paint = nn.Conv2d(width, channels, 3, padding=1)
        _blank(self.paint, spread=0.0 if self.base else FAINT)

    def linear(self, z: Tensor) -> Tensor:
        """The linear map alone: z [n, hidden] -> [n, channels, size, size], float32."""
        assert self.base is not None
        return self.base(z)

    def forward(self, z: Tensor) -> Tensor:
        """z [n, hidden] -> [n, channels, size, size], float32; without a base in (-1, 1)."""
        painted = widen(self.paint(self.climb(self.project(z).unflatten(1, (-1, 4, 4)))))
        return torch.tanh(painted) if self.base is None else self.base(z) + painted


class GridUpsampler(nn.Module):
    """U_s: an image of one grid to the next finer one: bilinear, plus a linear map where there is one, plus what a
    network adds to it.

    The network's last layer starts at zero, so that learning starts from the linear part.
    """

    def __init__(self, size: int, goal: int, channels: int, config: UpsamplerConfig, norm: Callable) -> None:
        super().__init__()
        width = min(config.width, config.min_width * goal // size * 2)
        self.goal = goal
        self.base = linear_base(channels * size**2, channels, goal, config.base)
        self.lift = nn.Conv2d(channels, width, 3, padding=1)
        self.mix = nn.Sequential(norm(width), SLOPED, nn.Conv2d(width, width, 3, padding=1))
        self.climb, width = _climb(size, goal, width, config, norm)
        keep_variance(self, SLOPED)
        self.paint = nn.Conv2d(width, channels, 3, padding=1)
        _blank(self.paint)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> [n, channels, goal, goal], float32."""
        return self.linear(x) + widen(self.paint(self.climb(self.mix(self.lift(x)))))

    def linear(self, x: Tensor) -> Tensor:
        """Bilinear, plus the linear map where there is one: [n, channels, size, size] -> [.., goal, goal], float32."""
        plain = interpolate(x, self.goal)
        return plain if self.base is None else plain + self.base(x)


FAINT = 0.01
"""standard deviation of the first images that come from z alone: all but grey, since chains take long to wipe out a
noise that every start has"""


def _blank(layer: nn.Conv2d, spread: float = 0.0) -> None:
    """A last layer whose output begins near 0, with a standard deviation of `spread` for features of order 1."""
    nn.init.normal_(layer.weight, std=spread / sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class BlockUpsampler(nn.Module):
    """Every pixel becomes a block of equal ones, as in multi-grid learning with fixed up-sampling."""

    def __init__(self, goal: int) -> None:
        super().__init__()
        self.goal = goal

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> [n, channels, goal, goal], float32."""
        return nn.functional.interpolate(widen(x), size=self.goal, mode="nearest")


class ColourUpsampler(BlockUpsampler):
    """Mean colours [n, channels, 1, 1] to plain images, and the law of the colours met in training."""

    mean: Tensor
    square: Tensor

    def __init__(self, goal: int, channels: int) -> None:
        super().__init__(goal)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.eye(channels))

    def moments(self, colours: Tensor) -> Tensor:
        """Mean [c] and mean outer product [c, c] of colours [n, c, 1, 1], in one tensor [c + c * c]."""
        flat = colours.flatten(1)
        return torch.cat([flat.mean(0), (flat.T @ flat / len(flat)).flatten()])

    def observe(self, moments: Tensor, share: float) -> None:
        """Moves the law towards a batch's moments by `share`, in (0, 1]."""
        count = len(self.mean)
        self.mean.lerp_(moments[:count], share)
        self.square.lerp_(moments[count:].view(count, count), share)

    def colours(self, z: Tensor) -> Tensor:
        """z ~ N(0, I) [n, c] -> normal colours [n, c, 1, 1] of the law that was met."""
        covariance = self.square - torch.outer(self.mean, self.mean)
        values, directions = torch.linalg.eigh(covariance.double())
        root = directions * values.clamp(min=0).sqrt() @ directions.T
        return (self.mean + (z.double() @ root).float())[:, :, None, None]


class Given(nn.Module):
    """No up-sampler: chains start where they are told to."""

    def forward(self, x: Tensor) -> Tensor:
        """x, float32."""
        return widen(x)


def interpolate(x: Tensor, size: int) -> Tensor:
    """Bilinear up-sampling of x [n, c, h, w] to [n, c, size, size]."""
    return nn.functional.interpolate(widen(x), size=size, mode="bilinear", align_corners=False)
