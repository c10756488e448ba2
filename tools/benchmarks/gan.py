"""A small GAN, the baseline of another family in tools/compare.py:

    python tools/benchmarks/gan.py SHARDS --loss wgan-gp --steps 1000 --count 655 --out samples.pt

DCGAN (Radford et al. 2016) with the non-saturating loss (Goodfellow et al. 2014) and batch norm in both networks, or
with the loss of WGAN-GP (Gulrajani et al. 2017) and none in the critic. The critic has the convolutions of this
project's energies. Images are drawn from averaged weights, as of all methods.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.distributed.lanes import bits
from ggcn.evaluation.images import read, to_bytes, to_floats
from ggcn.paths import user_path
from ggcn.precision import autocast, set_numeric_flags

HIDDEN = 128
PENALTY = 10.0
"""weight of WGAN-GP's gradient penalty"""
CRITICS = {"dcgan": 1, "wgan-gp": 3}
"""the critic's steps for each of the generator's"""
EMA = 0.99


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    set_numeric_flags()
    torch.manual_seed(bits("gan", args.seed))
    images = to_floats(read(args.shards, args.size, 50_000).pixels[:])
    images = images.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = train(images, args.loss, args.steps, args.batch, args.width)
    with files.atomic_write(args.out) as temporary:
        torch.save(sample(generator, args.count, args.seed, args.batch), temporary)


def train(images: Tensor, loss: str, steps: int, batch: int, width: int) -> nn.Module:
    """The averaged generator after `steps` steps on images [n, 3, size, size] in [-1, 1] and their mirror images."""
    size = images.shape[-1]
    device = images.device
    generator = _generator(size, width).to(device)
    critic = _critic(size, width, norm=loss == "dcgan").to(device)
    average = deepcopy(generator)
    lr, betas = (2e-4, (0.5, 0.999)) if loss == "dcgan" else (2e-4, (0.5, 0.9))
    generator_optimizer, critic_optimizer = (
        torch.optim.Adam(net.parameters(), lr, betas) for net in (generator, critic)
    )
    for step in range(steps):
        for _ in range(CRITICS[loss]):
            real = images[torch.randint(len(images), (batch,))]
            real = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, real.flip(3), real)
            with torch.no_grad():
                fake = _run(generator, torch.randn(batch, HIDDEN, device=device))
            _descend(critic_optimizer, _critic_loss(critic, real, fake, loss))
        score = _run(critic, _run(generator, torch.randn(batch, HIDDEN, device=device)))
        _descend(generator_optimizer, softplus(-score).mean() if loss == "dcgan" else -score.mean())
        weight = 1 - min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), weight)
    return average


def sample(generator: nn.Module, count: int, seed: int, batch: int) -> Tensor:
    """uint8 images [count, 3, size, size]; batch norm sees `batch` of them at once, as in training."""
    rng = torch.Generator().manual_seed(bits("gan samples", seed))
    device = next(generator.parameters()).device
    with torch.no_grad():
        z = (torch.randn(batch, HIDDEN, generator=rng).to(device) for _ in range(-(-count // batch)))
        parts = [_run(generator, part).cpu() for part in z]
    return to_bytes(torch.cat(parts)[:count])


def _critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, loss: str) -> Tensor:
    if loss == "dcgan":
        return softplus(-_run(critic, real)).mean() + softplus(_run(critic, fake)).mean()
    between = real.lerp(fake, torch.rand(len(real), 1, 1, 1, device=real.device)).requires_grad_()
    gradient = torch.autograd.grad(_run(critic, between).sum(), between, create_graph=True)[0]
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return _run(critic, fake).mean() - _run(critic, real).mean() + PENALTY * penalty


def _run(net: nn.Module, x: Tensor) -> Tensor:
    with autocast(x, "bf16"):
        return net(x).float()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _generator(size: int, width: int) -> nn.Module:
    """z [n, HIDDEN] -> [n, 3, size, size] in (-1, 1); channels halve as the image doubles, down to `width`."""
    channels = width * size // 8
    layers: list[nn.Module] = [nn.Unflatten(1, (HIDDEN, 1, 1)), nn.ConvTranspose2d(HIDDEN, channels, 4)]
    while channels > width:
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1)]
        channels //= 2
    return _normal(
        nn.Sequential(
            *layers,
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 3, 4, 2, 1),
            nn.Tanh(),
        )
    )


def _critic(size: int, width: int, norm: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    while size > 8:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), *([nn.BatchNorm2d(2 * width)] if norm else [])]
        layers += [nn.LeakyReLU(0.2)]
        width, size = 2 * width, size // 2
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 1))
    return _normal(net) if norm else net


def _normal(net: nn.Module) -> nn.Module:
    """DCGAN's initial weights."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
    return net


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=user_path)
    parser.add_argument("--loss", choices=list(CRITICS), default="dcgan")
    parser.add_argument("--steps", type=int, required=True, help="of the generator")
    parser.add_argument("--count", type=int, default=655, help="images to draw")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE.pt")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    run_cli(main)
