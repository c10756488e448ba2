"""Top-down up-samplers: hidden z to the coarsest grid, and each grid to the next."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

from ggcn.config.schema import UpsamplerConfig
from ggcn.models.init import keep_variance
from ggcn.precision import widen

ACTIVATION = nn.LeakyReLU(0.2)


class LaneNorm(nn.Module):
    """Batch normalisation whose batch is a lane, so that it does not depend on the number of ranks.

    `width` is the number of samples per lane; there are no running statistics.
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


def _upsampling_layers(
    size: int, target: int, width: int, config: UpsamplerConfig, norm: Callable
) -> tuple[nn.Sequential, int]:
    """Layers that double the size until `target` and halve the channels; and the number of channels of their output."""
    layers = [norm(width), ACTIVATION]
    while size < target:
        narrower = max(width // 2, config.min_width)
        layers += [
            nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1),
            norm(narrower),
            ACTIVATION,
        ]
        width, size = narrower, 2 * size
    return nn.Sequential(*layers), width


class LinearBase(nn.Module):
    """A linear map that is fitted to the training images once and not learned; 0 until then."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, channels: int, target: int) -> None:
        super().__init__()
        self.shape = (channels, target, target)
        self.register_buffer("weight", torch.zeros(channels * target**2, inputs))
        self.register_buffer("bias", torch.zeros(channels * target**2))

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """weight [channels * target^2, inputs], bias [channels * target^2]."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ...], `inputs` numbers per sample -> [n, channels, target, target], float32 whatever the autocast,
        since regressions are sensitive to small differences."""
        with torch.autocast(x.device.type, enabled=False):
            flat = nn.functional.linear(widen(x).flatten(1), widen(self.weight), widen(self.bias))
        return flat.unflatten(1, self.shape)


MAX_WEIGHTS = 2**24
"""largest linear map between two grids, 64 MB; 16 to 64 px has 9 million weights, and finer images have too little in
common at each position to gain from one"""


def linear_base(inputs: int, channels: int, target: int, kind: str) -> LinearBase | None:
    """The linear map of an up-sampler whose config.base is `kind`, or None."""
    fits = inputs * channels * target**2 <= MAX_WEIGHTS
    return LinearBase(inputs, channels, target) if kind == "fitted" and fits else None


class HiddenUpsampler(nn.Module):
    """U_0: hidden z to an image of the coarsest grid, by a network, or by a linear map of z plus a network."""

    def __init__(self, size: int, channels: int, config: UpsamplerConfig, norm: Callable) -> None:
        super().__init__()
        self.base = linear_base(config.z_dim, channels, size, config.base)
        self.project = nn.Linear(config.z_dim, config.width * 16)
        self.layers, width = _upsampling_layers(4, size, config.width, config, norm)
        keep_variance(self, ACTIVATION)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)
        _init_output_layer(self.to_image, std=0.0 if self.base else INITIAL_STD)

    def linear(self, z: Tensor) -> Tensor:
        """The linear map alone: z [n, hidden] -> [n, channels, size, size], float32."""
        assert self.base is not None
        return self.base(z)

    def forward(self, z: Tensor) -> Tensor:
        """z [n, hidden] -> [n, channels, size, size], float32; without a base in (-1, 1)."""
        output = widen(self.to_image(self.layers(self.project(z).unflatten(1, (-1, 4, 4)))))
        return torch.tanh(output) if self.base is None else self.base(z) + output


class GridUpsampler(nn.Module):
    """U_s: an image of one grid to the next finer one: bilinear interpolation, plus a linear map where there is one,
    plus a network.

    The network's last layer starts at zero, so that learning starts from the linear part.
    """

    def __init__(
        self, size: int, target: int, channels: int, config: UpsamplerConfig, norm: Callable
    ) -> None:
        super().__init__()
        width = min(config.width, config.min_width * target // size * 2)
        self.target = target
        self.base = linear_base(channels * size**2, channels, target, config.base)
        self.from_image = nn.Conv2d(channels, width, 3, padding=1)
        self.input_layers = nn.Sequential(norm(width), ACTIVATION, nn.Conv2d(width, width, 3, padding=1))
        self.layers, width = _upsampling_layers(size, target, width, config, norm)
        keep_variance(self, ACTIVATION)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)
        _init_output_layer(self.to_image)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> [n, channels, target, target], float32."""
        return self.linear(x) + widen(self.to_image(self.layers(self.input_layers(self.from_image(x)))))

    def linear(self, x: Tensor) -> Tensor:
        """Bilinear, plus the linear map if any: [n, channels, size, size] -> [.., target, target], float32."""
        bilinear = interpolate(x, self.target)
        return bilinear if self.base is None else bilinear + self.base(x)


INITIAL_STD = 0.01
"""standard deviation of the initial images without a linear map: almost grey, since chains need many steps to remove
noise from their starts"""


def _init_output_layer(layer: nn.Conv2d, std: float = 0.0) -> None:
    """Initializes a layer so that its output has the standard deviation `std` for features of order 1."""
    nn.init.normal_(layer.weight, std=std / sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class BlockUpsampler(nn.Module):
    """Every pixel becomes a block of equal ones, as in multi-grid learning with fixed up-sampling."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> [n, channels, target, target], float32."""
        return nn.functional.interpolate(widen(x), size=self.target, mode="nearest")


class ColourUpsampler(BlockUpsampler):
    """Mean colours [n, channels, 1, 1] to constant images, and the distribution of mean colours in training."""

    mean: Tensor
    square: Tensor

    def __init__(self, target: int, channels: int) -> None:
        super().__init__(target)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.eye(channels))

    def moments(self, colours: Tensor) -> Tensor:
        """Mean [c] and mean outer product [c, c] of colours [n, c, 1, 1], in one tensor [c + c * c]."""
        flat = colours.flatten(1)
        return torch.cat([flat.mean(0), (flat.T @ flat / len(flat)).flatten()])

    def observe(self, moments: Tensor, share: float) -> None:
        """Moves the distribution's moments towards a batch's by the factor `share`, in (0, 1]."""
        count = len(self.mean)
        self.mean.lerp_(moments[:count], share)
        self.square.lerp_(moments[count:].view(count, count), share)

    def colours(self, z: Tensor) -> Tensor:
        """z ~ N(0, I) [n, c] -> colours [n, c, 1, 1] from the normal distribution with the moments seen in training."""
        covariance = self.square - torch.outer(self.mean, self.mean)
        values, directions = torch.linalg.eigh(covariance.double())
        root = directions * values.clamp(min=0).sqrt() @ directions.T
        return (self.mean + (z.double() @ root).float())[:, :, None, None]


class NoUpsampler(nn.Module):
    """The identity: chains start at the input itself."""

    def forward(self, x: Tensor) -> Tensor:
        """x, float32."""
        return widen(x)


def interpolate(x: Tensor, size: int) -> Tensor:
    """Bilinear up-sampling of x [n, c, h, w] to [n, c, size, size]."""
    return nn.functional.interpolate(widen(x), size=size, mode="bilinear", align_corners=False)
