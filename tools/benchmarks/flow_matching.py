"""A small flow-matching U-Net, the baseline of diffusion's family in tools/compare.py:

    python tools/benchmarks/flow_matching.py SHARDS --steps 1000 --solvers heun-25,euler-100 --out samples.pt

Flow matching with independent pairs (Lipman et al. 2023, rectified flow before its reflow): x_t = (1 - t) x0 + t x1 of
noise x0 ~ N(0, I) and data x1, a network v(x_t, t) regressed on x1 - x0, samples by integrating dx/dt = v from noise.
The U-Net is that of DDPM in small, with the convolutions per image and training step of this project's default model.
Images are drawn from averaged weights, as of all methods.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.distributed.lanes import bits
from ggcn.errors import UserError
from ggcn.evaluation.images import read, to_bytes, to_floats
from ggcn.paths import user_path
from ggcn.precision import autocast, set_numeric_flags

EMA = 0.99
WARMUP = 50
SOLVERS = ("heun", "euler")


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    solvers = {name: parse_solver(name) for name in args.solvers.split(",")}
    set_numeric_flags()
    torch.manual_seed(bits("flow matching", args.seed))
    images = to_floats(read(args.shards, args.size, 50_000).pixels[:])
    images = images.to("cuda" if torch.cuda.is_available() else "cpu")
    net = train(images, args.steps, args.batch, args.width, args.lr)
    drawn = {
        name: sample(net, images[0].shape, args.count, args.seed, *solver) for name, solver in solvers.items()
    }
    with files.atomic_write(args.out) as temporary:
        torch.save(drawn, temporary)


def parse_solver(name: str) -> tuple[str, int]:
    """`heun-25` as its kind and number of steps. Raises UserError for another form."""
    kind, _, steps = name.partition("-")
    if kind not in SOLVERS or not steps.isdecimal() or not int(steps):
        raise UserError(f"there is no solver {name}; write heun-25 or euler-100, for example")
    return kind, int(steps)


def train(images: Tensor, steps: int, batch: int, width: int, lr: float) -> "UNet":
    """The averaged network after `steps` steps on images [n, 3, size, size] in [-1, 1] and their mirror images."""
    net = UNet(width).to(images.device)
    average = deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for step in range(steps):
        x1 = images[torch.randint(len(images), (batch,))]
        flips, t = torch.rand(2, batch, 1, 1, 1, device=images.device)
        x1 = torch.where(flips < 0.5, x1.flip(3), x1)
        x0 = torch.randn_like(x1)
        loss = (_velocity(net, x0.lerp(x1, t), t.flatten()) - (x1 - x0)).square().mean()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / WARMUP)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        weight = 1 - min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), weight)
    return average


@torch.no_grad()
def sample(net: "UNet", shape: torch.Size, count: int, seed: int, kind: str, steps: int) -> Tensor:
    """uint8 images [count, *shape], from dx/dt = v by `steps` steps of equal size: Euler's, or Heun's, which evaluate
    the network twice, the last one once."""
    rng = torch.Generator().manual_seed(bits("flow matching samples", seed))
    device = next(net.parameters()).device
    parts = []
    for x in torch.randn(count, *shape, generator=rng).split(64):
        x, h = x.to(device), 1 / steps
        for step in range(steps):
            v = _velocity(net, x, x.new_full((len(x),), step * h))
            if kind == "heun" and step < steps - 1:
                ahead = _velocity(net, x + h * v, x.new_full((len(x),), (step + 1) * h))
                v = (v + ahead) / 2
            x = x + h * v
        parts.append(x.cpu())
    return to_bytes(torch.cat(parts))


def _velocity(net: "UNet", x: Tensor, t: Tensor) -> Tensor:
    with autocast(x, "bf16"):
        return net(x, t).float()


class UNet(nn.Module):
    """v(x, t), [n, 3, size, size]: three levels of residual blocks with skips between the way down and the way up, on
    blocks of 2 x 2 pixels (the energies, too, halve the image in their first layer), attention at the coarsest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, time = width, 4 * width
        widths = [width, 2 * width, 4 * width]
        self.time = nn.Sequential(nn.Linear(2 * width, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(12, width, 3, padding=1)
        self.down = nn.ModuleList(
            Block(below, wide, time) for below, wide in zip([width, *widths], widths, strict=False)
        )
        self.middle = nn.ModuleList([Attention(widths[-1]), Block(widths[-1], widths[-1], time)])
        self.up = nn.ModuleList(
            Block(above + wide, wide, time)
            for above, wide in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.leave = nn.Sequential(Norm(width), nn.SiLU(), _zero(nn.Conv2d(width, 12, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [n, 3, size, size]; t [n] in [0, 1]."""
        time = self.time(_sinusoids(t, self.width))
        h = self.enter(nn.functional.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, block in enumerate(self.down):
            h = block(nn.functional.avg_pool2d(h, 2) if level else h, time)
            skips.append(h)
        attention, block = self.middle
        h = block(attention(h), time)
        for level, block in enumerate(self.up):
            h = block(torch.cat([interpolate(h, scale_factor=2) if level else h, skips.pop()], 1), time)
        return nn.functional.pixel_shuffle(self.leave(h), 2)


class Block(nn.Module):
    """Two convolutions with group norm, between them a shift by time; their sum with the input."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(Norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shift = nn.Linear(time, outputs)
        self.second = nn.Sequential(
            Norm(outputs), nn.SiLU(), _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [n, inputs, h, w]; time [n, time]."""
        return self.skip(x) + self.second(self.first(x) + self.shift(silu(time))[:, :, None, None])


class Attention(nn.Module):
    """Self-attention over all places, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.project = Norm(width), nn.Conv2d(width, 3 * width, 1)
        self.leave = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width, h, w]."""
        query, key, value = self.project(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        attended = scaled_dot_product_attention(query, key, value)
        return x + self.leave(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class Norm(nn.GroupNorm):
    """Group norm in the layout where a CPU computes it fast: in channels last it takes a third of the step."""

    def __init__(self, width: int) -> None:
        super().__init__(8, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width, h, w]."""
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights of 0: residual parts begin as nothing."""
    nn.init.zeros_(layer.weight)
    return layer


def _sinusoids(t: Tensor, width: int) -> Tensor:
    frequencies = torch.logspace(0, 3, width, device=t.device)
    return torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], 1)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=user_path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--count", type=int, default=655, help="images to draw with each solver")
    parser.add_argument("--solvers", default="heun-25,euler-100", metavar="A,B", help="with their steps")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE.pt")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument(
        "--width", type=int, default=24, help="channels at the finest level, in eights from 16 on"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    run_cli(main)
