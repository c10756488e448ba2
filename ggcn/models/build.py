"""The two networks of a model: the energies of all grids, and the up-samplers between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from math import isinf

import torch
from torch import Tensor, nn

from ggcn.config.fields import is_own
from ggcn.config.schema import Config, EnergyConfig, ModelConfig
from ggcn.distributed.lanes import bits
from ggcn.models.chain_unet import ChainUpsampler
from ggcn.models.energy import ConvEnergy, LevelEnergy
from ggcn.models.frame import FrameEnergy
from ggcn.models.own import OwnUpsampler, own_energy
from ggcn.models.upsampler import (
    BlockUpsampler,
    ColourUpsampler,
    GridUpsampler,
    HiddenUpsampler,
    NoUpsampler,
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
        self.chain_precision = _resolve_precision(model.chain.precision, precision)
        self.jko_precision = _resolve_precision(model.flow.precision, precision)

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
        """E(x) of one grid in the chains' precision, for many calls: with the present weights, cast and laid out once
        instead of in every call (autocast caches casts only of weights that require a gradient).

        The network itself is not changed, so that threads may share it."""
        net = _with_cast_weights(self.grids[grid], self.chain_precision)

        def energy(x: Tensor) -> Tensor:
            with autocast(x, self.chain_precision):
                return self.reference(x) - net(x)

        return energy


def _with_cast_weights(net: nn.Module, precision: Precision) -> nn.Module:
    """A shallow copy of `net` that shares its parameters, but for the weights of convolutions, which are detached and
    have the dtype and the memory format of `precision`'s kernels."""
    shallow = copy(net)
    layers = net._modules.items()
    shallow._modules = {name: layer and _with_cast_weights(layer, precision) for name, layer in layers}
    if isinstance(net, nn.Conv2d):
        shallow._parameters = {name: _cast(weight, precision) for name, weight in net.named_parameters()}
    return shallow


def _cast(weight: nn.Parameter, precision: Precision) -> nn.Parameter:
    cast = weight.detach() if precision == "fp32" else weight.detach().bfloat16()
    layout = torch.channels_last if cast.dim() == 4 else torch.contiguous_format
    return nn.Parameter(cast.contiguous(memory_format=layout), requires_grad=False)


def _energy(size: int, config: EnergyConfig) -> nn.Module:
    if config.kind == "frame":
        return FrameEnergy(size, config.filters)
    if is_own(config.kind):
        return own_energy(size, CHANNELS, config)
    kinds = {"last": ConvEnergy, "every": LevelEnergy}
    return kinds[config.readout](size, CHANNELS, config)


def _resolve_precision(setting: str, engine: Precision) -> Precision:
    return engine if setting == "engine" else setting


class Upsamplers(nn.Module):
    """U_0: z or mean colours to the coarsest grid, or nothing where chains start otherwise; U_s: grid s - 1 to s."""

    def __init__(self, model: ModelConfig, precision: Precision, lane_width: int) -> None:
        super().__init__()
        config, sizes = model.upsampler, model.grids
        norm = normalization(config.norm, lane_width)
        hidden: dict[str, Callable[[], nn.Module]] = {
            "convnet": lambda: HiddenUpsampler(sizes[0], CHANNELS, config, norm),
            "unet": lambda: ChainUpsampler(config.z_dim, sizes[0], CHANNELS, config, bilinear=False),
        }
        build_hidden = hidden.get(config.kind, lambda: OwnUpsampler(None, sizes[0], CHANNELS, config))
        coarsest: dict[str, Callable[[], nn.Module]] = {
            "hidden": build_hidden,
            "data": lambda: ColourUpsampler(sizes[0], CHANNELS),
        }
        first = coarsest.get(model.chain_init, NoUpsampler)()
        finer: dict[str, Callable[[int, int], nn.Module]] = {
            "convnet": lambda size, target: GridUpsampler(size, target, CHANNELS, config, norm),
            "unet": lambda size, target: ChainUpsampler(
                CHANNELS * size**2, target, CHANNELS, config, bilinear=True
            ),
            "fixed": lambda size, target: BlockUpsampler(target),
        }
        build_step = finer.get(config.kind, lambda size, target: OwnUpsampler(size, target, CHANNELS, config))
        steps = [build_step(size, target) for size, target in pairwise(sizes)]
        self.grids = nn.ModuleList([first, *steps])
        self.precision, self.chains_from = precision, model.chain.init_from

    @property
    def learned(self) -> list[int]:
        """Numbers of the grids whose up-sampler has parameters."""
        return [number for number, net in enumerate(self.grids) if any(True for _ in net.parameters())]

    @property
    def colours(self) -> ColourUpsampler | None:
        """U_0 where chains start from mean colours."""
        first = self.grids[0]
        return first if isinstance(first, ColourUpsampler) else None

    def base(self, grid: int, inputs: Tensor) -> Tensor:
        """The output of the linear map alone, without the network's, float32."""
        net = self.grids[grid]
        assert isinstance(net, HiddenUpsampler | GridUpsampler | ChainUpsampler | OwnUpsampler)
        return net.linear(inputs)

    def chain_start(self, grid: int, inputs: Tensor) -> Tensor:
        """The starts of a grid's chains: the output of the linear map, or of the whole up-sampler (`start`)."""
        return self.base(grid, inputs) if self.chains_from == "base" else self.start(grid, inputs)

    def start(self, grid: int, inputs: Tensor) -> Tensor:
        """The up-sampler's output [n, c, size, size]. `inputs` on grid 0: z [n, z_dim], mean colours [n, c, 1, 1], or
        the starts themselves; else the chain ends of the grid before."""
        with autocast(inputs, self.precision):
            return self.grids[grid](inputs)

    def foreseen_end(self, grid: int, inputs: Tensor, start: Tensor) -> Tensor:
        """What the up-sampler makes of `inputs`, to be the end of the chain from `start` [n, c, size, size], with whose
        noise it begins; an up-sampler without a place for noise sees the inputs alone."""
        net = self.grids[grid]
        with autocast(inputs, self.precision):
            return net.foresee(start) if isinstance(net, ChainUpsampler) else net(inputs)


def build(config: Config) -> tuple[Energies, Upsamplers]:
    """Both networks with the initial weights of the config's seed, equal on every rank, on the CPU."""
    lane_width = config.train.batch // config.lanes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits(config.seed, "initial weights"))
        energies = Energies(config.model, config.engine.precision)
        return energies, Upsamplers(config.model, config.engine.precision, lane_width)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter requires a gradient, so that chains cannot affect the optimizer."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
