"""The two sides of a model: the energies of all grids, and the up-samplers between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from math import isinf

import torch
from torch import Tensor, nn

from ggcn.config.schema import Config, EnergyConfig, ModelConfig
from ggcn.distributed.lanes import bits
from ggcn.models.energy import ConvEnergy, LevelEnergy
from ggcn.models.frame import FrameEnergy
from ggcn.models.upsampler import (
    BlockUpsampler,
    ColourUpsampler,
    Given,
    GridUpsampler,
    HiddenUpsampler,
    normalization,
)
from ggcn.precision import Precision, autocast, widen

CHANNELS = 3
"""make_shards turns every image into RGB"""


class Energies(nn.Module):
    """E(x) = -f(x) + |x|^2 / (2 sigma^2) for every grid; low is likely."""

    def __init__(self, model: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.grids = nn.ModuleList(_energy(size, model.energy) for size in model.grids)
        self.shape = (CHANNELS, model.grids[0], model.grids[0])
        """of an image of the coarsest grid"""
        self.sigma = model.sigma
        self.precision = precision
        self.chain_precision = _as_engine(model.chain.precision, precision)
        self.jko_precision = _as_engine(model.flow.precision, precision)

    def neg_energy(self, grid: int, x: Tensor, precision: Precision | None = None) -> Tensor:
        """The negative energy f without the reference: x [n, c, size, size] -> [n], float32."""
        with autocast(x, precision or self.precision):
            return self.grids[grid](x)

    def reference(self, x: Tensor) -> Tensor:
        """The Gaussian reference |x|^2 / (2 sigma^2), [n]; 0 for an infinite sigma."""
        if isinf(self.sigma):
            return widen(x).new_zeros(len(x))
        return widen(x).square().flatten(1).sum(1) / (2 * self.sigma**2)

    def energy(self, grid: int, x: Tensor, precision: Precision | None = None) -> Tensor:
        """E(x) on grid number `grid`: x [n, c, size, size] -> [n], float32."""
        return self.reference(x) - self.neg_energy(grid, x, precision)

    def prepared(self, grid: int) -> Callable[[Tensor], Tensor]:
        """E(x) of one grid in the precision of the chains, for many calls: with the weights as they are now, cast and
        laid out once instead of in every call (autocast remembers casts only of weights that take a gradient).

        The network itself stays as it is, so that threads may share it."""
        net = _ready(self.grids[grid], self.chain_precision)

        def energy(x: Tensor) -> Tensor:
            with autocast(x, self.chain_precision):
                return self.reference(x) - net(x)

        return energy


def _ready(net: nn.Module, precision: Precision) -> nn.Module:
    """A second network of the same parameters, but for the convolutions' weights, which are detached and as their
    kernels take them in `precision`."""
    twin = copy(net)
    twin._modules = {name: layer and _ready(layer, precision) for name, layer in net._modules.items()}
    if isinstance(net, nn.Conv2d):
        twin._parameters = {name: _cast(weight, precision) for name, weight in net.named_parameters()}
    return twin


def _cast(weight: nn.Parameter, precision: Precision) -> nn.Parameter:
    cast = weight.detach() if precision == "fp32" else weight.detach().bfloat16()
    layout = torch.channels_last if cast.dim() == 4 else torch.contiguous_format
    return nn.Parameter(cast.contiguous(memory_format=layout), requires_grad=False)


def _energy(size: int, config: EnergyConfig) -> nn.Module:
    if config.kind == "frame":
        return FrameEnergy(size, config.filters)
    kinds = {"last": ConvEnergy, "every": LevelEnergy}
    return kinds[config.readout](size, CHANNELS, config)


def _as_engine(wanted: str, engine: Precision) -> Precision:
    return engine if wanted == "engine" else wanted


class Upsamplers(nn.Module):
    """U_0: z or colours to the coarsest grid, or nothing where chains start otherwise; U_s: grid s - 1 to s."""

    def __init__(self, model: ModelConfig, precision: Precision, lane_width: int) -> None:
        super().__init__()
        config, sizes = model.upsampler, model.grids
        norm = normalization(config.norm, lane_width)
        firsts: dict[str, Callable[[], nn.Module]] = {
            "hidden": lambda: HiddenUpsampler(sizes[0], CHANNELS, config, norm),
            "data": lambda: ColourUpsampler(sizes[0], CHANNELS),
        }
        first = firsts.get(model.chain_init, Given)()
        steps: list[nn.Module] = [
            GridUpsampler(size, goal, CHANNELS, config, norm)
            if config.kind == "convnet"
            else BlockUpsampler(goal)
            for size, goal in pairwise(sizes)
        ]
        self.grids = nn.ModuleList([first, *steps])
        self.precision, self.chains_from = precision, model.chain.init_from

    @property
    def learned(self) -> list[int]:
        """Numbers of the grids whose up-sampler has something to learn."""
        return [number for number, net in enumerate(self.grids) if any(True for _ in net.parameters())]

    @property
    def colours(self) -> ColourUpsampler | None:
        """U_0 where chains start from mean colours."""
        first = self.grids[0]
        return first if isinstance(first, ColourUpsampler) else None

    def base(self, grid: int, source: Tensor) -> Tensor:
        """`start` without what the networks add: the linear maps alone, float32."""
        net = self.grids[grid]
        assert isinstance(net, HiddenUpsampler | GridUpsampler)
        return net.linear(source)

    def chain_start(self, grid: int, source: Tensor) -> Tensor:
        """Where a grid's chains start: at the linear maps' images, or at those of the networks (`start`)."""
        return self.base(grid, source) if self.chains_from == "base" else self.start(grid, source)

    def start(self, grid: int, source: Tensor) -> Tensor:
        """Where grid's chains start. `source` on grid 0: z [n, hidden], colours [n, c, 1, 1], or the starts
        themselves; else the chain ends of the grid before."""
        with autocast(source, self.precision):
            return self.grids[grid](source)


def build(config: Config) -> tuple[Energies, Upsamplers]:
    """Both sides with the initial weights that the config's seed stands for, equal on every rank, on the CPU."""
    lane_width = config.train.batch // config.lanes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits(config.seed, "initial weights"))
        energies = Energies(config.model, config.engine.precision)
        return energies, Upsamplers(config.model, config.engine.precision, lane_width)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no gradient inside; nothing that a chain does can reach the optimizer."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
