"""Bottom-up energies: one network per grid."""

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ggcn.config.schema import EnergyConfig
from ggcn.models.init import keep_variance
from ggcn.precision import narrow, widen

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


INITIAL_STD = 0.01
"""approximate standard deviation of the initial energies; learned ones are of order 1"""


class ConvEnergy(nn.Module):
    """The negative energy f of one grid: strided convolutions down to 4 x 4, then one linear read-out.

    No normalisation, so that a sample's energy is its own; no bias in the read-out, which would only shift
    the energy and is invisible to the chains and to the density. The read-out starts near 0, so that an
    untrained energy hardly moves a chain.
    """

    def __init__(self, size: int, channels: int, config: EnergyConfig) -> None:
        super().__init__()
        width, activation = config.width, ACTIVATIONS[config.activation]
        layers: list[nn.Module] = [_stem(size, channels, width), activation()]
        size = min(size, max(size // 2, FULL_RESOLUTION_SIZE))
        while size > 4:
            wider = min(2 * width, config.max_width)
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), activation()]
            width, size = wider, size // 2
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(width * size * size, 1, bias=False)
        keep_variance(self.features, activation())
        nn.init.normal_(self.readout.weight, std=INITIAL_STD / sqrt(self.readout.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] in [-1, 1] -> f(x) [n], float32 whatever the autocast."""
        # channels last is what convolutions compute in; else every layer reorders its input
        hidden = self.features(narrow(x).contiguous(memory_format=torch.channels_last))
        weight = self.readout.weight.view(1, *hidden.shape[1:]).contiguous(memory_format=torch.channels_last)
        return (widen(hidden) * weight).sum((1, 2, 3))


class LevelEnergy(nn.Module):
    """The negative energy f of one grid, read out at every level l of features h_l:

    f = sum over l of <w_l, h_l> - |Q_l h_l|^2 / 2, with 1 x 1 convolutions Q_l to half of the channels.

    So the gradient of f is a top-down pass with a skip at every level, the shape of a U-Net, and its quadratic terms
    let it grow with the distance to the data. Both read-outs start near 0.
    """

    def __init__(self, size: int, channels: int, config: EnergyConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]()
        widths, sizes = [config.width], [min(size, max(size // 2, FULL_RESOLUTION_SIZE))]
        levels = [_stem(size, channels, config.width)]
        while sizes[-1] > 4:
            wider = min(2 * widths[-1], config.max_width)
            levels.append(nn.Conv2d(widths[-1], wider, 4, stride=2, padding=1))
            widths, sizes = [*widths, wider], [*sizes, sizes[-1] // 2]
        self.levels = nn.ModuleList(levels)
        keep_variance(self.levels, self.activation)
        shapes = [(width, side, side) for width, side in zip(widths, sizes, strict=True)]
        self.linear = nn.ParameterList(
            torch.randn(shape) * INITIAL_STD / sqrt(prod(shape)) for shape in shapes
        )
        self.quadratic = nn.ModuleList(_quadratic_readout(width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] in [-1, 1] -> f(x) [n], float32 whatever the autocast."""
        hidden = narrow(x).contiguous(memory_format=torch.channels_last)
        f = widen(x).new_zeros(len(x))
        for level, linear, quadratic in zip(self.levels, self.linear, self.quadratic, strict=True):
            hidden = self.activation(level(hidden))
            f = f + (widen(hidden) * widen(linear)).sum((1, 2, 3))
            f = f - widen(quadratic(hidden)).square().sum((1, 2, 3)) / 2
        return f


def _quadratic_readout(width: int) -> nn.Conv2d:
    """The 1 x 1 convolution of a quadratic read-out of `width` channels."""
    layer = nn.Conv2d(width, max(width // 2, 16), 1)
    nn.init.normal_(layer.weight, std=2 * INITIAL_STD / sqrt(width))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


FULL_RESOLUTION_SIZE = 16
"""grids up to this size keep their resolution in the first layer; finer ones are halved there, which makes a chain
step three times cheaper"""


def _stem(size: int, channels: int, width: int) -> nn.Module:
    if size <= FULL_RESOLUTION_SIZE:
        return nn.Conv2d(channels, width, 3, padding=1)
    return HalvingStem(channels, width)


class HalvingStem(nn.Conv2d):
    """Conv2d(channels, width, 4, stride=2, padding=1), computed as a 2 x 2 convolution of the image's 2 x 2 blocks.

    The same function of the same weights, but a chain step takes a sixth less time: kernels for input gradients
    are slow for three channels with a stride.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, 2 s, 2 s] -> [n, width, s, s]."""
        return conv2d(blocks(pad(x, (1, 1, 1, 1))), blocks(self.weight), self.bias)


def blocks(x: Tensor) -> Tensor:
    """[n, c, 2 h, 2 w] -> [n, 4 c, h, w], channels last: a channel for each of a block's pixels and colours."""
    n, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3)
    return blocks.reshape(n, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)
