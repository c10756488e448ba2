"""Up-samplers that foresee chains: a U-Net from where a chain starts, its noise included, to where it ends."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ggcn.config.schema import UpsamplerConfig
from ggcn.models.init import keep_variance
from ggcn.models.upsampler import interpolate, linear_base
from ggcn.precision import narrow, widen

ACTIVATION = nn.SiLU()
COARSEST_LEVEL, MAX_CHANNELS = 4, 256


class ChainUpsampler(nn.Module):
    """U_s = x0 + R(x0), with x0 the linear maps' image of z or of the coarser grid, plus the chain's own noise.

    Regressed on the ends of chains that start at the same x0 it learns the map that the chain is, a function of x0 at
    temperature 0; without the noise it could only learn the mean over it. R is 0 before learning.
    """

    def __init__(
        self, inputs: int, size: int, channels: int, config: UpsamplerConfig, bilinear: bool
    ) -> None:
        """inputs: numbers in z, or in an image of the coarser grid; bilinear: whether its enlarged image is added."""
        super().__init__()
        self.size, self.bilinear = size, bilinear
        self.base = linear_base(inputs, channels, size, config.base)
        self.correction = ChainUNet(size, channels, config.width)

    def linear(self, x: Tensor) -> Tensor:
        """The linear maps alone: z [n, hidden] or images [n, channels, h, h] -> [n, channels, size, size], float32."""
        if not self.bilinear:
            assert self.base is not None
            return self.base(x)
        bilinear = interpolate(x, self.size)
        return bilinear if self.base is None else bilinear + self.base(x)

    def foresee(self, start: Tensor) -> Tensor:
        """Where the chain from `start` [n, channels, size, size] ends, the same shape, float32."""
        return widen(start) + widen(self.correction(start))

    def forward(self, x: Tensor) -> Tensor:
        """Where the chain without noise ends that the input z or [n, channels, h, h] leads to, float32."""
        return self.foresee(self.linear(x))


class ChainUNet(nn.Module):
    """Images [n, channels, size, size] to corrections of the same shape, 0 before learning.

    It reads blocks of up to 4 x 4 pixels, so that its finest level has an 8 x 8 map or a quarter of the image's side:
    a fifth of a chain's time. Each level halves the side and doubles the channels, down to 4 x 4.
    """

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        self.block = min(max(size // 8, 1), 4)
        side, channels = size // self.block, channels * self.block**2
        self.from_image = nn.Conv2d(channels, width, 3, padding=1)
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        self.ways_down, self.ways_up = nn.ModuleList(), nn.ModuleList()
        while side > COARSEST_LEVEL:
            wider = min(2 * width, MAX_CHANNELS)
            down.append(ResidualBlock(width, side))
            up.insert(0, ResidualBlock(width, side))
            self.ways_down.append(nn.Conv2d(width, wider, 4, stride=2, padding=1))
            self.ways_up.insert(0, nn.ConvTranspose2d(wider, width, 4, stride=2, padding=1))
            width, side = wider, side // 2
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = ResidualBlock(width, side)
        keep_variance(self, ACTIVATION)
        nn.init.zeros_(self.to_image.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] -> the same shape."""
        hidden = self.from_image(
            pixel_unshuffle(narrow(x), self.block).contiguous(memory_format=torch.channels_last)
        )
        skips: list[Tensor] = []
        for block, way_down in zip(self.down, self.ways_down, strict=True):
            skips.append(block(hidden))
            hidden = way_down(ACTIVATION(skips[-1]))
        hidden = self.middle(hidden)
        for block, way_up in zip(self.up, self.ways_up, strict=True):
            hidden = block(way_up(ACTIVATION(hidden)) + skips.pop())
        return pixel_shuffle(self.to_image(ACTIVATION(hidden)), self.block)


class ResidualBlock(nn.Module):
    """Two convolutions with a learned map between them, which tells them where in the image they are."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(channels, side, side))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, side, side] -> the same shape."""
        hidden = self.first(ACTIVATION(x))
        return x + self.second(ACTIVATION(hidden + self.position.to(hidden.dtype)))
