"""Draws pictures from a trained run:

    python tools/sample.py runs/faces64 --count 64 --out faces.png      # one picture, a grid
    python tools/sample.py runs/faces64 --count 1000 --out pictures/    # a folder of PNGs

From averaged weights, with fresh chains. Picture number i of a seed is the same whatever else is drawn, up to float
rounding.
"""

import argparse
from math import ceil, sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ggcn import pictures
from ggcn.errors import UserError, run_cli
from ggcn.export import load
from ggcn.sampling.sampler import Sampler


def main() -> None:
    """The command line."""
    arguments = parser().parse_args()
    if arguments.count < 1 or arguments.batch < 1:
        raise UserError("--count and --batch must be at least 1")
    if arguments.out.suffix.lower() not in ("", ".png"):
        raise UserError(f"--out {arguments.out} must end in .png, or be a folder's name without an ending")
    sampler = load(arguments.run, arguments.step, usable(arguments.device))
    images = draw(sampler, arguments.count, arguments.seed, arguments.batch)
    if arguments.out.suffix.lower() == ".png":
        save_grid(images, arguments.out)
    else:
        save_folder(images, arguments.out)
    print(f"{arguments.count} pictures of {sampler.folder}: {arguments.out}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=Path, help="run directory, or exported .safetensors file")
    words.add_argument("--count", type=int, default=64)
    words.add_argument(
        "--out", type=Path, required=True, help="NAME.png for a grid, a name without ending for a folder"
    )
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--step", type=int, help="checkpoint to take; the newest whole one by default")
    words.add_argument("--batch", type=int, default=64, help="chains at once")
    words.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one")
    return words


def usable(name: str | None) -> torch.device:
    """The device of that name, by default a GPU where there is one; raises UserError when it cannot be had."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]})") from None
    return device


def draw(sampler: Sampler, count: int, seed: int, batch: int) -> Tensor:
    """`count` images [count, 3, h, w], with a progress bar where somebody watches."""
    parts = []
    with tqdm(total=count, unit="picture", disable=None) as bar:
        for part in sampler.batches(count, seed, batch):
            parts.append(part)
            bar.update(len(part))
    return torch.cat(parts)


def save_grid(images: Tensor, path: Path) -> None:
    """About as many columns as rows; small images are blown up to be seen."""
    scale = max(1, 64 // images.shape[-1])
    pictures.save(pictures.sheet(images, ceil(sqrt(len(images))), scale), path)


def save_folder(images: Tensor, folder: Path) -> None:
    """One PNG per image, numbered from 0."""
    for number, tile in enumerate(pictures.to_bytes(images)):
        pictures.save(Image.fromarray(tile), folder / f"{number:06d}.png")


if __name__ == "__main__":
    run_cli(main)
