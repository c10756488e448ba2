"""`bench.py chain`: a Langevin step beside the loop everybody writes, torchebm's sampler, and its convolutions alone.

The energy is the project's own; rivals run the same function of the same weights in stock layers. Times are the
least of all rounds: whatever else the machine does only ever adds to them.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ggcn.config.grids import Grid
from ggcn.config.schema import EnergyConfig, ModelConfig
from ggcn.errors import UserError
from ggcn.models.build import CHANNELS, Energies, frozen
from ggcn.models.energy import ConvEnergy
from ggcn.sampling.langevin import langevin
from ggcn.sampling.noise import Noise
from tools.benchmarks.floor import DTYPES, GEMM, Convolution, convolutions, multiplication
from tools.benchmarks.report import OURS, Table, said, take_turns, timed

PLAIN, AUTOCAST, TORCHEBM = "plain loop", "plain loop, bf16 autocast", "torchebm"
STEP_SIZE, TEMPERATURE, SEED = 1.0, 1e-4, 5
Chain = Callable[[float], Tensor]
"""temperature -> chain ends"""


def add(commands: Any) -> None:
    """The flags of `bench.py chain`."""
    words = commands.add_parser("chain", help="a Langevin step beside what one would write otherwise")
    words.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="pixels along a side")
    words.add_argument("--width", type=int, default=EnergyConfig().width, help="model.energy.width")
    words.add_argument("--batch", type=int, default=64, help="chains at once (default 64)")
    words.add_argument("--lanes", type=int, default=8, help="random streams that they share (default 8)")
    words.add_argument("--steps", type=int, default=8, help="Langevin steps of a measured chain (default 8)")
    words.add_argument("--rounds", type=int, default=10, help="the least of so many is taken (default 10)")
    words.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default 1)")
    words.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    words.set_defaults(measure=chains)


def chains(told: argparse.Namespace) -> Iterator[Table]:
    """Two tables for every size. Raises UserError for numbers that do not fit."""
    if min(told.rounds, told.steps, told.threads, told.width, told.lanes, told.batch) < 1:
        raise UserError("--rounds, --steps, --threads, --width, --lanes and --batch must be at least 1")
    if told.batch % told.lanes:
        raise UserError(f"--batch {told.batch} must be a multiple of --lanes {told.lanes}")
    if any(size < 4 or size & (size - 1) for size in told.sizes):
        raise UserError("--sizes must be powers of 2 from 4 on")
    torch.set_num_threads(told.threads)
    for size in told.sizes:
        yield from _tables(Case(size, told), told.rounds)


class Case:
    """A network with random weights, where its chains start, and their noise."""

    def __init__(self, size: int, told: argparse.Namespace) -> None:
        self.device, self.steps = torch.device(told.device), told.steps
        model = ModelConfig(grids=[size], energy=EnergyConfig(width=told.width))
        self.energies = {precision: _energies(model, precision, self.device) for precision in DTYPES}
        net = self.energies["fp32"].grids[0]
        assert isinstance(net, ConvEnergy)
        self.net, self.stock = net, stock(net)
        self.start = (0.3 * torch.randn(told.batch, CHANNELS, size, size)).to(self.device)
        self.keys = [(SEED, "lane", lane) for lane in range(told.lanes)]
        self.name = f"{size} px, width {told.width}, {told.batch} chains"

    def rivals(self) -> dict[str, Chain]:
        """Name -> chain."""
        others: dict[str, Chain] = {PLAIN: self.plain, AUTOCAST: partial(self.plain, autocast=True)}
        with_torchebm = {TORCHEBM: sampler} if (sampler := self.torchebm()) else {}
        mine: dict[str, Chain] = {f"{OURS}, {name}": partial(self.ours, name) for name in DTYPES}
        return others | with_torchebm | mine

    def ours(self, precision: str, temperature: float) -> Tensor:
        """This project's chain."""
        energies, noise = self.energies[precision], Noise(self.keys, self.device)
        grid = Grid(self.start.shape[-1], self.steps, STEP_SIZE, temperature, gamma=0.0)
        with frozen(energies), torch.no_grad():
            return langevin(energies.prepared(0), self.start, grid, noise)[0]

    def plain(self, temperature: float, autocast: bool = False) -> Tensor:
        """The loop everybody writes."""
        x = self.start
        for _ in range(self.steps):
            x = x.detach().requires_grad_()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
                energy = self.stock(x).sum()
            gradient = torch.autograd.grad(energy, x)[0]
            x = x - STEP_SIZE * gradient + sqrt(2 * STEP_SIZE * temperature) * torch.randn_like(x)
        return x.detach()

    def torchebm(self) -> Chain | None:
        """torchebm's sampler, where it is installed (pip install -e '.[bench]')."""
        try:
            from torchebm.core import BaseModel
            from torchebm.samplers import LangevinDynamics
        except ImportError:
            return None

        class Model(BaseModel):
            def __init__(self, net: nn.Module) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)[:, 0]

        def chain(temperature: float) -> Tensor:
            scale = sqrt(temperature) or 1e-30  # its noise has the variance 2 a scale^2 and cannot be 0
            sampler = LangevinDynamics(model, STEP_SIZE, scale, device=self.device)
            return sampler.sample(x=self.start, n_steps=self.steps)

        model = Model(self.stock)
        return chain


def _energies(model: ModelConfig, precision: str, device: torch.device) -> Energies:
    """The same random weights for every precision; a read-out that is not 0."""
    torch.manual_seed(SEED)
    energies = Energies(model, precision)
    nn.init.normal_(energies.grids[0].readout.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return energies.to(device)


def stock(net: ConvEnergy) -> nn.Sequential:
    """-f(x) [n, 1] in torch's own layers, layout and weights that take a gradient."""
    readout = copy.deepcopy(net.readout)
    with torch.no_grad():
        readout.weight.neg_()
    return nn.Sequential(*map(_stock_layer, net.features), nn.Flatten(), readout)


def _stock_layer(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d):
        return copy.deepcopy(layer)
    geometry: Any = layer.kernel_size, layer.stride, layer.padding
    twin = nn.Conv2d(layer.in_channels, layer.out_channels, *geometry).to(layer.weight.device)
    twin.load_state_dict(layer.state_dict())
    return twin


def _tables(case: Case, rounds: int) -> Iterator[Table]:
    said(case.name)
    layers = convolutions(case.net, case.start)
    rivals = case.rivals()
    contenders: dict[Any, Callable[[], float]] = {
        name: partial(timed, partial(chain, TEMPERATURE), case.device) for name, chain in rivals.items()
    }
    for number, layer in enumerate(layers):
        kinds = {"stock": layer, **{name: layer.ready(name) for name in DTYPES}}
        for kind, each in kinds.items():
            contenders[number, kind] = partial(timed, each.call(), case.device)
    for name in DTYPES:
        contenders["peak", name] = partial(timed, multiplication(name, case.device), case.device)
    take_turns(contenders, 2)  # kernels are chosen, memory is found
    times = take_turns(contenders, rounds)
    best = {key: 1e3 * min(values) for key, values in times.items()}
    yield _floor(case, layers, best)
    yield _comparison(case, rivals, layers, best)


def _floor(case: Case, layers: list[Convolution], best: dict[Any, float]) -> Table:
    kinds = ("stock", *DTYPES)
    rows = [
        [_shape(layer), f"{layer.flops / 1e6:,.0f}", f"{layer.bytes / 1e6:.1f}"]
        + [_rate(layer.flops, best[number, kind]) for kind in kinds]
        for number, layer in enumerate(layers)
    ]
    flops, size = (sum(getattr(layer, name) for layer in layers) for name in ("flops", "bytes"))
    sums = {kind: sum(best[number, kind] for number in range(len(layers))) for kind in kinds}
    rows.append(
        ["all", f"{flops / 1e6:,.0f}", f"{size / 1e6:.1f}"] + [_rate(flops, sums[kind]) for kind in kinds]
    )
    peaks = [_rate(2 * GEMM**3, best["peak", name]) for name in DTYPES]
    rows.append(
        [
            f"product of matrices, {GEMM}",
            f"{2 * GEMM**3 / 1e6:,.0f}",
            f"{12 * GEMM**2 / 1e6:.1f}",
            "-",
            *peaks,
        ]
    )
    head = ["layer", "MFLOP", "MB in fp32", "stock fp32", "fp32", "bf16"]
    title = f"Convolutions alone, forward and input gradient, ms (GFLOP/s): {case.name}"
    return Table(title, head, rows)


def _comparison(
    case: Case, rivals: dict[str, Chain], layers: list[Convolution], best: dict[Any, float]
) -> Table:
    truth = rivals[PLAIN](0.0)
    moved = (truth - case.start).norm()
    others = [name for name in (PLAIN, TORCHEBM) if name in rivals]
    rows = []
    for name, chain in rivals.items():
        kind = next((kind for kind in DTYPES if name == f"{OURS}, {kind}"), "stock")
        limit = sum(best[number, kind] for number in range(len(layers)))
        step = best[name] / case.steps
        ratios = [f"{best[other] / best[name]:.2f}" for other in others]
        differs = f"{(chain(0.0) - truth).norm() / moved:.1e}"
        rows.append([name, f"{step:.2f}", *ratios, f"{100 * limit / step:.0f} %", differs])
    head = ["chain", "ms per step", *(f"{other} / it" for other in others), "of convolutions", "end differs"]
    return Table(f"A Langevin step: {case.name}", head, rows)


def _shape(layer: Convolution) -> str:
    out, inputs, kernel, _ = layer.weight.shape
    return f"{inputs} to {out}, {kernel} x {kernel} / {layer.stride}, {layer.x.shape[-1]} px"


def _rate(flops: int, ms: float) -> str:
    return f"{ms:.2f} ({flops / ms / 1e6:,.0f})"
