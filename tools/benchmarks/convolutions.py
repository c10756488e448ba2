"""The lower bound of a chain step: the convolutions of the energy and their input gradients, each alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ggcn.models.energy import ConvEnergy, HalvingStem, blocks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEMM = 1024


@dataclass(frozen=True)
class Convolution:
    """One layer at work, on frozen weights without bias."""

    name: str
    x: Tensor
    weight: Tensor
    stride: int
    padding: int

    @property
    def flops(self) -> int:
        """Of the forward pass and the input gradient; a multiplication with its addition counts as two."""
        return 4 * len(self.x) * self.weight.numel() * self.side**2

    @property
    def bytes(self) -> int:
        """Least that both passes read and write: input, output and weights, or their gradients, once each."""
        out = len(self.x) * len(self.weight) * self.side**2
        return 2 * (self.x.numel() + self.weight.numel() + out) * self.x.element_size()

    @property
    def side(self) -> int:
        """Pixels along a side of the output."""
        return (self.x.shape[-1] + 2 * self.padding - self.weight.shape[-1]) // self.stride + 1

    def run(self, upstream: Tensor) -> None:
        """Forward, then the input gradient of `upstream`, the shape of the output."""
        conv2d(self.x, self.weight, None, self.stride, self.padding)
        geometry = [self.stride] * 2, [self.padding] * 2, [1, 1], False, [0, 0], 1
        torch.ops.aten.convolution_backward(
            upstream, self.x, self.weight, None, *geometry, [True, False, False]
        )

    def call(self) -> Callable[[], None]:
        """`run` for an upstream gradient in the output's own layout."""
        return partial(self.run, conv2d(self.x, self.weight, None, self.stride, self.padding))

    def ready(self, precision: str) -> "Convolution":
        """The same in the layout and type that this project computes it in."""
        x, weight, stride, padding = self.x, self.weight, self.stride, self.padding
        if self.name == "stem":
            x, weight, stride, padding = blocks(pad(x, (1, 1, 1, 1))), blocks(weight), 1, 0
        x, weight = (
            each.to(DTYPES[precision]).contiguous(memory_format=torch.channels_last) for each in (x, weight)
        )
        return Convolution(self.name, x, weight, stride, padding)


def convolutions(net: ConvEnergy, x: Tensor) -> list[Convolution]:
    """The layers that `x` [n, c, size, size] passes, float32, in torch's default layout."""
    result = []
    with torch.no_grad():
        for layer in net.features:
            if isinstance(layer, nn.Conv2d):
                name = "stem" if isinstance(layer, HalvingStem) else "convolution"
                geometry = int(layer.stride[0]), int(layer.padding[0])
                result.append(Convolution(name, x.contiguous(), layer.weight.detach(), *geometry))
            x = layer(x)
    return result


def multiplication(precision: str, device: torch.device) -> Callable[[], Tensor]:
    """a product of two square matrices: the peak of this machine."""
    one, other = torch.randn(2, GEMM, GEMM, device=device).to(DTYPES[precision])
    return partial(torch.mm, one, other)
