"""Draws pictures from a trained run, and does what else its energy is good for:

    python tools/sample.py runs/faces64 --count 64 --out faces.png      # one picture, a grid
    python tools/sample.py runs/faces64 --count 1000 --out pictures/    # a folder of PNGs
    python tools/sample.py runs/faces64 --chain-steps 32 --out more.png           # longer chains on the finest grid
    python tools/sample.py runs/faces64 --film 8 --out film.png                   # stages of the chains, in rows
    python tools/sample.py runs/faces64 --interpolate 9 --out walk.png            # between pairs of z
    python tools/sample.py runs/faces64 --inpaint IMAGES --mask centre --out filled.png
    python tools/sample.py runs/faces64 --denoise IMAGES --sd 0.2 --out clean.png
    python tools/sample.py runs/faces64 --score IMAGES --out energies.csv         # low is likely

From averaged weights, with fresh chains. Picture number i of a seed is the same whatever else is drawn, up to float
rounding. IMAGES is an image file, or a folder, zip or tar of them.
"""

import argparse
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, inf, sqrt
from os.path import expanduser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ggcn import files, image_grid
from ggcn.applications import inpainting as tasks
from ggcn.applications import user_images
from ggcn.applications.export import load
from ggcn.config.data import DataConfig
from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.precision import set_numeric_flags
from ggcn.sampling.noise import host_normal
from ggcn.sampling.sampler import Sampler, check_finite

PICTURES, ROWS, NAMED = 64, 8, 5
"""drawn by default; rows by default; named at either end of a table of energies"""
COLUMNS = 16
"""pictures side by side where each stands below the one that was given"""


def main() -> None:
    """The command line."""
    told = parser().parse_args()
    check(told)
    files.check_writable(told.out if told.out.suffix else told.out / "000000.png")
    sampler = load(told.run, told.step, usable(told.device))
    task = next(
        name for name in (*TASKS, "pictures") if name == "pictures" or getattr(told, name) is not None
    )
    print(f"{DO[task](sampler, told)} of {sampler.folder}: {told.out}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=user_path, help="run directory, or exported .safetensors file")
    words.add_argument(
        "--count", type=int, help=f"pictures ({PICTURES}), rows ({ROWS}), or images taken (all)"
    )
    words.add_argument(
        "--out", type=user_path, required=True, help="NAME.png for a grid, a name without ending for a folder"
    )
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--step", type=int, help="checkpoint to take; the newest whole one by default")
    words.add_argument("--batch", type=int, default=64, help="chains at once")
    words.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one")
    words.add_argument(
        "--chain-steps", type=int, metavar="N", help="on the finest grid; the model's own by default"
    )
    one = words.add_mutually_exclusive_group()
    one.add_argument("--film", type=int, metavar="K", help="a row of K stages along each chain")
    one.add_argument(
        "--interpolate", type=int, metavar="N", help="a row of N from z to z for each pair of them"
    )
    one.add_argument("--inpaint", type=expanduser, metavar="IMAGES", help="fill in what --mask hides")
    one.add_argument(
        "--denoise", type=expanduser, metavar="IMAGES", help="take noise of standard deviation --sd off"
    )
    one.add_argument("--score", type=expanduser, metavar="IMAGES", help="energies on all grids, to NAME.csv")
    one.add_argument("--data", type=expanduser, metavar="SHARDS", help="as --score, of shards")
    words.add_argument("--allow-pipe", action="store_true", help=PIPE_HELP)
    words.add_argument(
        "--mask",
        type=expanduser,
        metavar="|".join((*user_images.MASKS, "FILE.png")),
        help="what to fill in: white in FILE.png",
    )
    words.add_argument("--sd", type=float, metavar="S", help="of the noise, pixels in [-1, 1]")
    words.add_argument("--corrupt", action="store_true", help="add the noise first, and say what is won")
    words.add_argument("--weight", type=float, metavar="W", help="of the energy; by default from the picture")
    return words


PIPE_HELP = (
    "let SHARDS be pipe:COMMAND, which runs in a shell; what a run's own config says of it does not count"
)

TASKS = ("film", "interpolate", "inpaint", "denoise", "score", "data")


def check(told: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    scores = told.score is not None or told.data is not None
    endings = (".csv",) if scores else ("", ".png")
    wanted = "must end in .csv" if scores else "must end in .png, or be a folder's name without an ending"
    numbers = (told.count, told.batch, told.chain_steps)
    faults = {
        "--count, --batch and --chain-steps must be at least 1": min(n for n in numbers if n is not None) < 1,
        "--film and --interpolate take at least 2 stages": min(told.film or 2, told.interpolate or 2) < 2
        or 0 in (told.film, told.interpolate),
        f"--out {told.out} {wanted}": told.out.suffix.lower() not in endings,
        "--inpaint and --mask go together; say --mask centre, left or FILE.png": (told.mask is None)
        != (told.inpaint is None),
        "--denoise and --sd go together; say how strong the noise is, for example --sd 0.2": (told.sd is None)
        != (told.denoise is None),
        "--sd must be above 0, from 1e-6 to 100": told.sd is not None and not 1e-6 <= told.sd <= 100,
        "--corrupt and --weight belong to --denoise": told.denoise is None
        and (told.corrupt or told.weight is not None),
        "--weight must be at least 0, and finite": told.weight is not None and not 0 <= told.weight < inf,
        "--chain-steps runs no chain with --score and --data": scores and told.chain_steps is not None,
    }
    for sentence, fault in faults.items():
        if fault:
            raise UserError(sentence)


def usable(name: str | None) -> torch.device:
    """The device of that name, by default a GPU where there is one; raises UserError when it cannot be had."""
    set_numeric_flags()
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name} cannot be used ({reason})") from None
    return device


@contextmanager
def reading(allow_pipe: bool) -> Iterator[DataConfig]:
    """How shards are read: by commands in `pipe:` only if `allow_pipe`; their output is kept in a temporary folder."""
    if not allow_pipe:
        yield DataConfig()
        return
    with TemporaryDirectory(prefix="ggcn-") as folder:
        yield DataConfig(allow_pipe=True, cache_dir=folder)


def draw(sampler: Sampler, told: argparse.Namespace) -> str:
    """Pictures, with longer chains where that is asked for."""
    count, steps = told.count or PICTURES, told.chain_steps or sampler.grids[-1].steps
    drawn = []
    for part in parts_of(count, told.batch, sampler, "picture"):
        images = tasks.film(sampler, part, told.seed, [steps])[:, 0]
        check_finite(images, sampler)
        if told.out.suffix:
            drawn.append(images)
        else:  # at once: there may be more than memory holds
            save(images, told.out, part.start)
    if drawn:
        save(torch.cat(drawn), told.out)
    return f"{count} pictures"


def film(sampler: Sampler, told: argparse.Namespace) -> str:
    """Rows of stages."""
    count = told.count or ROWS
    stops = tasks.stages(told.chain_steps or sampler.grids[-1].steps, told.film)
    parts = parts_of(count, told.batch, sampler, "row")
    rows = torch.cat([tasks.film(sampler, part, told.seed, stops) for part in parts])
    check_finite(rows, sampler)
    save_rows(rows, told.out)
    return f"{count} films, after {', '.join(map(str, stops))} Langevin steps,"


def interpolate(sampler: Sampler, told: argparse.Namespace) -> str:
    """Rows between pairs of z."""
    count, stages = told.count or ROWS, told.interpolate
    parts = parts_of(count, max(told.batch // stages, 1), sampler, "row", whole=False)
    made = [tasks.interpolate(sampler, part, told.seed, stages, told.chain_steps) for part in parts]
    rows = torch.cat(made)
    check_finite(rows, sampler)
    save_rows(rows, told.out)
    return f"{count} walks between pairs of z"


def inpaint(sampler: Sampler, told: argparse.Namespace) -> str:
    """Rows: given, masked, filled in."""
    size = sampler.grids[-1].size
    known = user_images.mask(told.mask, size)
    _, images = user_images.images(told.inpaint, size, told.count)
    parts = parts_of(len(images), told.batch, sampler, "picture")
    filled = [
        tasks.inpaint(sampler, images[part.start : part.stop], known, part.start, told.seed, told.chain_steps)
        for part in parts
    ]
    result = torch.cat(filled)
    check_finite(result, sampler)
    masked = torch.where(known, images, torch.zeros(()))
    save_beside(told.out, {"given": images, "masked": masked, "filled in": result}, "filled in")
    colour = images[:, :, known].mean(2)[:, :, None, None].expand_as(images)
    won, plain = (tasks.psnr(each, images, ~known) for each in (result, colour))
    return f"{len(images)} pictures filled in (PSNR {won:.2f} dB; each its known pixels' mean colour {plain:.2f} dB)"


def denoise(sampler: Sampler, told: argparse.Namespace) -> str:
    """Rows: given, noisy if noise was added, denoised."""
    _, images = user_images.images(told.denoise, sampler.grids[-1].size, told.count)
    noisy = images
    if told.corrupt:
        keys = [(told.seed, "corrupt", number) for number in range(len(images))]
        noisy = images + told.sd * host_normal(keys, *images.shape)
    parts = parts_of(len(images), told.batch, sampler, "picture")
    settings = told.chain_steps, told.weight
    clean = [
        tasks.denoise(sampler, noisy[part.start : part.stop], told.sd, part.start, told.seed, *settings)
        for part in parts
    ]
    result = torch.cat(clean)
    check_finite(result, sampler)
    rows = {"given": images} | ({"noisy": noisy} if told.corrupt else {}) | {"denoised": result}
    save_beside(told.out, rows, "denoised")
    won = f" (PSNR {tasks.psnr(result, images):.2f} dB; noisy {tasks.psnr(noisy, images):.2f} dB)"
    return f"{len(images)} pictures denoised{won if told.corrupt else ''}"


def score(sampler: Sampler, told: argparse.Namespace) -> str:
    """A table of energies, the finest grid's lowest first; says which are lowest and highest."""
    names, images = _to_score(sampler, told)
    energies = torch.cat([tasks.energies(sampler, part) for part in images.split(told.batch)])
    check_finite(energies, sampler)
    order = energies[:, -1].argsort(stable=True).tolist()
    rows = [[names[place], *(f"{value:.6g}" for value in energies[place].tolist())] for place in order]
    with files.atomic_write(told.out) as temporary, _table(temporary) as file:
        csv.writer(file).writerows([["name", *(f"energy_{grid.size}" for grid in sampler.grids)], *rows])
    for title, some in (("lowest", rows[:NAMED]), ("highest", rows[::-1][:NAMED])):
        print(f"{title:8} " + "\n         ".join(f"{row[-1]:>12}  {row[0]}" for row in some))
    return f"energies of {len(names)} pictures"


def _table(path: Path) -> IO[str]:
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _to_score(sampler: Sampler, told: argparse.Namespace) -> tuple[list[str], Tensor]:
    size = sampler.grids[-1].size
    if told.score is not None:
        return user_images.images(told.score, size, told.count)
    from ggcn.evaluation.images import read, to_floats

    with reading(told.allow_pipe) as how:
        found = read(told.data, size, told.count or 1_000_000, sampler.config.data.crop, how)
    return [f"{number:09d}" for number in range(len(found))], to_floats(found.pixels[:])


DO = {"pictures": draw, "film": film, "interpolate": interpolate, "inpaint": inpaint, "denoise": denoise}
DO |= {"score": score, "data": score}


def parts_of(count: int, batch: int, sampler: Sampler, unit: str, whole: bool = True) -> Iterator[range]:
    """0 to count - 1 in parts of at most about `batch`, whole lanes if they are to be, with a progress bar where
    somebody watches."""
    width = sampler.lane_width if whole else 1
    batch = max(batch // width, 1) * width
    with tqdm(total=count, unit=unit, disable=None) as bar:
        for first in range(0, count, batch):
            part = range(first, min(first + batch, count))
            yield part
            bar.update(len(part))


def save(images: Tensor, out: Path, first: int = 0) -> None:
    """A grid with about as many columns as rows, or a folder of PNGs numbered from `first`."""
    if out.suffix.lower() == ".png":
        return image_grid.save(image_grid.make_grid(images, ceil(sqrt(len(images))), scale_of(images)), out)
    for number, tile in enumerate(image_grid.to_bytes(images), first):
        image_grid.save(Image.fromarray(tile), out / f"{number:06d}.png")
    return None


def save_rows(rows: Tensor, out: Path) -> None:
    """Rows [n, columns, 3, h, w] as one picture, or a folder of numbered strips."""
    if out.suffix.lower() == ".png":
        return image_grid.save(image_grid.make_grid(rows.flatten(0, 1), rows.shape[1], scale_of(rows)), out)
    for number, row in enumerate(rows):
        image_grid.save(image_grid.make_grid(row, len(row)), out / f"{number:06d}.png")
    return None


def save_beside(out: Path, rows: dict[str, Tensor], result: str) -> None:
    """Labelled rows, one below the other, COLUMNS pictures wide; or a folder of the results alone."""
    if out.suffix.lower() != ".png":
        return save(rows[result], out)
    count, size = rows[result].shape[0], rows[result].shape[-1]
    page = [
        (label, images[first : first + COLUMNS])
        for first in range(0, count, COLUMNS)
        for label, images in rows.items()
    ]
    return image_grid.save(image_grid.labelled_rows(", ".join(rows), page, max(64, size)), out)


def scale_of(images: Tensor) -> int:
    """Small images are blown up to be seen."""
    return max(1, 64 // images.shape[-1])
