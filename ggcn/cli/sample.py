"""Draws images from a trained run, and applies its energy to images:

    python tools/sample.py runs/faces64 --count 64 --out faces.png      # one image, a grid
    python tools/sample.py runs/faces64 --count 1000 --out samples/     # a folder of PNGs
    python tools/sample.py runs/faces64 --steps 8 --time 1.5 --out other.png      # other chains
    python tools/sample.py runs/faces64 --mode amortized --out fast.png           # learned starts, short chains
    python tools/sample.py runs/faces64 --trajectory 8 --out trajectories.png     # steps along the chains, in rows
    python tools/sample.py runs/faces64 --interpolate 9 --out interpolations.png  # between pairs of z
    python tools/sample.py runs/faces64 --inpaint IMAGES --mask centre --out filled.png
    python tools/sample.py runs/faces64 --denoise IMAGES --std 0.2 --out clean.png
    python tools/sample.py runs/faces64 --energies IMAGES --out energies.csv      # low is likely

From averaged weights, with new chains. Image number i of a seed is the same whatever else is drawn, up to float
rounding. IMAGES is an image file, or a folder, zip or tar of them.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from math import inf
from os.path import expanduser
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from ggcn import files
from ggcn.applications import user_images
from ggcn.applications.denoising import denoise
from ggcn.applications.energies import energies
from ggcn.applications.export import load
from ggcn.applications.inpainting import inpaint
from ggcn.applications.interpolation import interpolate
from ggcn.applications.psnr import psnr
from ggcn.applications.trajectory import snapshot_steps, trajectory
from ggcn.cli.options import (
    PIPE_HELP,
    add_chain_flags,
    add_renamed_flags,
    data_config,
    device,
    with_chain_flags,
)
from ggcn.cli.sample_output import is_folder, save_comparison, save_images, save_rows
from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.sampling.noise import host_normal
from ggcn.sampling.sampler import Sampler, check_finite

DEFAULT_IMAGES, DEFAULT_ROWS = 64, 8
LISTED = 5
"""images with the lowest and with the highest energies that are printed"""
RENAMED = {"--film": "--trajectory", "--score": "--energies", "--sd": "--std", "--chain-steps": "--steps"}


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    check(args)
    files.check_writable(args.out if args.out.suffix else args.out / "000000.png")
    sampler = with_chain_flags(load(args.run, args.step, device(args.device)), args)
    task = next((run for name, run in TASKS.items() if getattr(args, name) is not None), run_draw)
    print(f"{task(sampler, args)} of {sampler.folder}: {args.out}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=user_path, help="run directory, or exported .safetensors file")
    parser.add_argument(
        "--count",
        type=int,
        help=f"images drawn ({DEFAULT_IMAGES}), rows drawn ({DEFAULT_ROWS}), or images read (all)",
    )
    parser.add_argument(
        "--out", type=user_path, required=True, help="NAME.png for a grid, a name without ending for a folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, help="step of the checkpoint; by default the newest valid one")
    parser.add_argument("--batch", type=int, default=64, help="chains at once")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
    add_chain_flags(parser)
    _add_tasks(parser)
    add_renamed_flags(parser, RENAMED)
    return parser


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--trajectory", type=int, metavar="K", help="rows of K states along each chain")
    task.add_argument("--interpolate", type=int, metavar="N", help="rows of N images between pairs of z")
    task.add_argument(
        "--inpaint", type=expanduser, metavar="IMAGES", help="fill in the pixels that --mask hides"
    )
    task.add_argument(
        "--denoise", type=expanduser, metavar="IMAGES", help="remove noise of standard deviation --std"
    )
    task.add_argument(
        "--energies", type=expanduser, metavar="IMAGES", help="energies on all grids, to NAME.csv"
    )
    task.add_argument("--data", type=expanduser, metavar="SHARDS", help="as --energies, of shards")
    parser.add_argument("--allow-pipe", action="store_true", help=PIPE_HELP)
    parser.add_argument(
        "--mask",
        type=expanduser,
        metavar="|".join((*user_images.MASKS, "FILE.png")),
        help="what to fill in: white in FILE.png",
    )
    parser.add_argument("--std", type=float, metavar="S", help="of the noise, pixels in [-1, 1]")
    parser.add_argument("--corrupt", action="store_true", help="add the noise first, and print the PSNR won")
    parser.add_argument(
        "--weight", type=float, metavar="W", help="of the energy; by default estimated from each image"
    )


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    table = args.energies is not None or args.data is not None
    endings = (".csv",) if table else ("", ".png")
    required = "must end in .csv" if table else "must end in .png, or be a folder's name without an ending"
    numbers = (args.count, args.batch)
    chains = (args.mode, args.steps, args.time, args.temperature, args.noise)
    rows = (args.trajectory, args.interpolate)
    faults = {
        "--count and --batch must be at least 1": min(n for n in numbers if n is not None) < 1,
        "--trajectory and --interpolate take at least 2 images": any(n is not None and n < 2 for n in rows),
        f"--out {args.out} {required}": args.out.suffix.lower() not in endings,
        "--inpaint and --mask go together; say --mask centre, left or FILE.png": (args.mask is None)
        != (args.inpaint is None),
        "--denoise and --std go together; say how strong the noise is, for example --std 0.2": (
            args.std is None
        )
        != (args.denoise is None),
        "--std must be above 0, from 1e-6 to 100": args.std is not None and not 1e-6 <= args.std <= 100,
        "--corrupt and --weight belong to --denoise": args.denoise is None
        and (args.corrupt or args.weight is not None),
        "--weight must be at least 0, and finite": args.weight is not None and not 0 <= args.weight < inf,
        "--mode, --steps, --time, --temperature and --noise are for chains, and --energies and --data run none": table
        and any(setting is not None for setting in chains),
    }
    for sentence, fault in faults.items():
        if fault:
            raise UserError(sentence)


def run_draw(sampler: Sampler, args: argparse.Namespace) -> str:
    """Draws images."""
    count, steps = args.count or DEFAULT_IMAGES, sampler.grids[-1].steps
    drawn = []
    for batch in batches(count, args.batch, sampler, "image"):
        images = trajectory(sampler, batch, args.seed, [steps])[:, 0]
        check_finite(images, sampler)
        if is_folder(args.out):  # at once: there may be more than memory holds
            save_images(images, args.out, batch.start)
        else:
            drawn.append(images)
    if drawn:
        save_images(torch.cat(drawn), args.out)
    return f"{count} images"


def run_trajectory(sampler: Sampler, args: argparse.Namespace) -> str:
    """Rows of states along chains."""
    count = args.count or DEFAULT_ROWS
    stops = snapshot_steps(sampler.grids[-1].steps, args.trajectory)
    numbers = batches(count, args.batch, sampler, "row")
    rows = torch.cat([trajectory(sampler, batch, args.seed, stops) for batch in numbers])
    check_finite(rows, sampler)
    save_rows(rows, args.out)
    return f"{count} chain trajectories, after {', '.join(map(str, stops))} Langevin steps,"


def run_interpolate(sampler: Sampler, args: argparse.Namespace) -> str:
    """Rows between pairs of z."""
    count, width = args.count or DEFAULT_ROWS, args.interpolate
    numbers = batches(count, max(args.batch // width, 1), sampler, "row", complete_lanes=False)
    rows = torch.cat([interpolate(sampler, batch, args.seed, width) for batch in numbers])
    check_finite(rows, sampler)
    save_rows(rows, args.out)
    return f"{count} interpolations between pairs of z"


def run_inpaint(sampler: Sampler, args: argparse.Namespace) -> str:
    """Rows: original, masked, filled in."""
    size = sampler.grids[-1].size
    mask = user_images.mask(args.mask, size)
    _, images = user_images.images(args.inpaint, size, args.count)
    filled = torch.cat(
        [
            inpaint(sampler, images[batch.start : batch.stop], mask, batch.start, args.seed)
            for batch in batches(len(images), args.batch, sampler, "image")
        ]
    )
    check_finite(filled, sampler)
    masked = torch.where(mask, images, torch.zeros(()))
    save_comparison(args.out, {"original": images, "masked": masked, "filled in": filled}, "filled in")
    colour = images[:, :, mask].mean(2)[:, :, None, None].expand_as(images)
    result, baseline = (psnr(each, images, ~mask) for each in (filled, colour))
    return f"{len(images)} images filled in (PSNR {result:.2f} dB; mean colour of the known pixels {baseline:.2f} dB)"


def run_denoise(sampler: Sampler, args: argparse.Namespace) -> str:
    """Rows: original, noisy if noise was added, denoised."""
    _, images = user_images.images(args.denoise, sampler.grids[-1].size, args.count)
    noisy = images
    if args.corrupt:
        keys = [(args.seed, "corrupt", number) for number in range(len(images))]
        noisy = images + args.std * host_normal(keys, *images.shape)
    clean = torch.cat(
        [
            denoise(sampler, noisy[batch.start : batch.stop], args.std, batch.start, args.seed, args.weight)
            for batch in batches(len(images), args.batch, sampler, "image")
        ]
    )
    check_finite(clean, sampler)
    rows = {"original": images} | ({"noisy": noisy} if args.corrupt else {}) | {"denoised": clean}
    save_comparison(args.out, rows, "denoised")
    won = f" (PSNR {psnr(clean, images):.2f} dB; noisy {psnr(noisy, images):.2f} dB)" if args.corrupt else ""
    return f"{len(images)} images denoised{won}"


def run_energies(sampler: Sampler, args: argparse.Namespace) -> str:
    """A table of energies, the finest grid's lowest first; prints which images have the lowest and highest."""
    names, images = _read_images(sampler, args)
    values = torch.cat([energies(sampler, batch) for batch in images.split(args.batch)])
    check_finite(values, sampler)
    order = values[:, -1].argsort(stable=True).tolist()
    rows = [[names[index], *(f"{value:.6g}" for value in values[index].tolist())] for index in order]
    with files.atomic_write(args.out) as temporary, _open_csv(temporary) as file:
        csv.writer(file).writerows([["name", *(f"energy_{grid.size}" for grid in sampler.grids)], *rows])
    for title, listed in (("lowest", rows[:LISTED]), ("highest", rows[::-1][:LISTED])):
        print(f"{title:8} " + "\n         ".join(f"{row[-1]:>12}  {row[0]}" for row in listed))
    return f"energies of {len(names)} images"


def _open_csv(path: Path) -> IO[str]:
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _read_images(sampler: Sampler, args: argparse.Namespace) -> tuple[list[str], Tensor]:
    """Names and pixels of the images of --energies or --data."""
    size = sampler.grids[-1].size
    if args.energies is not None:
        return user_images.images(args.energies, size, args.count)
    from ggcn.evaluation.images import read, to_floats  # imports WebDataset, which only shards need

    with data_config(args.allow_pipe) as config:
        results = read(args.data, size, args.count or 1_000_000, sampler.config.data.crop, config)
        return [f"{number:09d}" for number in range(len(results))], to_floats(results.pixels[:])


TASKS: dict[str, Callable[[Sampler, argparse.Namespace], str]] = {
    "trajectory": run_trajectory,
    "interpolate": run_interpolate,
    "inpaint": run_inpaint,
    "denoise": run_denoise,
    "energies": run_energies,
    "data": run_energies,
}
"""by the flag that asks for it"""


def batches(
    count: int, size: int, sampler: Sampler, unit: str, complete_lanes: bool = True
) -> Iterator[range]:
    """0 to count - 1 in batches of about `size` at most, by default of complete lanes, with a progress bar on a
    terminal."""
    width = sampler.lane_width if complete_lanes else 1
    size = max(size // width, 1) * width
    with tqdm(total=count, unit=unit, disable=None) as bar:
        for first in range(0, count, size):
            batch = range(first, min(first + size, count))
            yield batch
            bar.update(len(batch))
