"""FRAME: a fixed bank of filters and an energy that is linear in its weights (Zhu, Wu and Mumford 1998)."""

from collections.abc import Iterator, Sequence
from math import cos, pi, sin, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from ggcn.config.schema import FilterConfig
from ggcn.precision import widen

COLOURS = ((1 / sqrt(3),) * 3, (1 / sqrt(2), -1 / sqrt(2), 0.0), (1 / sqrt(6), 1 / sqrt(6), -2 / sqrt(6)))
"""brightness and two opponent colours, an orthonormal basis of RGB"""

FILTER_SIZE = 7
"""pixels along a filter; larger scales are the same filters on a halved image, which costs a quarter each"""

WAVELENGTH = 4.0
"""pixels of a Gabor filter's wave: with FILTER_SIZE 7 nearly two waves, and half of it again at the next scale"""

SMOOTHING = 0.1
"""|r| is approximated by sqrt(r^2 + SMOOTHING^2) - SMOOTHING: smooth, so that the energy can be differentiated twice
and chains do not oscillate around r = 0; responses reach several units"""


class FilterBank(nn.Module):
    """Responses to Gabor filters (even and odd) of brightness, and to a difference of Gaussians and a Gaussian of
    all three colour directions, on the image and on halves of it. Nothing in it is learned."""

    filters: Tensor

    def __init__(self, size: int, config: FilterConfig) -> None:
        super().__init__()
        self.sizes = [size >> scale for scale in range(config.scales) if size >> scale > FILTER_SIZE // 2]
        edges = torch.stack(
            [shape for k in range(config.orientations) for shape in _gabors(pi * k / config.orientations)]
        )
        blobs = torch.stack([_unit(_gaussian(0.8) - _gaussian(1.6)), _gaussian(1.6) / _gaussian(1.6).norm()])
        filters = torch.cat([_coloured(edges, COLOURS[:1]), _coloured(blobs, COLOURS)])
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [n, 3, size, size] -> per scale the features [n, 2 * filters, s, s]: responses r, then |r|; both over s,
        so that sums over places are of one size at every scale and a learning rate suits all grids."""
        features = []
        for scale in range(len(self.sizes)):
            x = avg_pool2d(x, 2) if scale else x
            margin = [FILTER_SIZE // 2] * 4
            responses = widen(nn.functional.conv2d(pad(x, margin, mode="reflect"), self.filters))
            magnitude = (responses.square() + SMOOTHING**2).sqrt() - SMOOTHING
            features.append(torch.cat([responses, magnitude], 1) / x.shape[-1])
        return features


class FrameEnergy(nn.Module):
    """The negative energy f(x) = sum_k sum_u w_ku h_k(x, u), h being the features of a FilterBank.

    Stationary weights are the same at every position u and describe a texture; weights per position describe
    objects in place. Learning is matching: at its end the features of samples have the mean of the data's.
    All weights start at 0, where the model is its reference.
    """

    def __init__(self, size: int, config: FilterConfig) -> None:
        super().__init__()
        self.bank = FilterBank(size, config)
        count = 2 * len(self.bank.filters)
        kinds = ["stationary", "position"] if config.weights == "both" else [config.weights]
        sides = {"stationary": [1] * len(self.bank.sizes), "position": self.bank.sizes}
        self.weights = nn.ParameterDict(
            {
                f"{kind}_{scale}": torch.zeros(count, s, s)
                for kind in kinds
                for scale, s in enumerate(sides[kind])
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, size, size] in [-1, 1] -> f(x) [n], float32 whatever the autocast."""
        terms = [
            (features * weight).flatten(1).sum(1)
            for scale, features in enumerate(self.bank(x))
            for weight in self._weights(scale)
        ]
        return torch.stack(terms).sum(0)

    def _weights(self, scale: int) -> Iterator[Tensor]:
        names = (f"stationary_{scale}", f"position_{scale}")
        return (self.weights[name] for name in names if name in self.weights)


def _coloured(shapes: Tensor, colours: Sequence[tuple[float, ...]]) -> Tensor:
    """Grey filters [k, h, w] in each of `colours`: [len(colours) * k, 3, h, w]."""
    return torch.einsum("cr,khw->ckrhw", torch.tensor(colours), shapes).flatten(0, 1).contiguous()


def _gabors(angle: float) -> tuple[Tensor, Tensor]:
    """The even and the odd Gabor filter of an orientation."""
    y, x = _plane()
    phase = 2 * pi / WAVELENGTH * (x * cos(angle) + y * sin(angle))
    window = _gaussian(WAVELENGTH / 2)
    return _unit(window * phase.cos()), _unit(window * phase.sin())


def _plane() -> tuple[Tensor, Tensor]:
    axis = torch.arange(FILTER_SIZE) - FILTER_SIZE // 2.0
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def _gaussian(std: float) -> Tensor:
    """Sums to 1."""
    y, x = _plane()
    bell = torch.exp(-(x**2 + y**2) / (2 * std**2))
    return bell / bell.sum()


def _unit(shape: Tensor) -> Tensor:
    shape = shape - shape.mean()
    return shape / shape.norm()
