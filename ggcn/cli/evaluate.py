"""Measures a trained run:

    python tools/evaluate.py runs/faces64                                  # against the shards it was trained on
    python tools/evaluate.py faces64.safetensors --data shards/faces64 --ood shards/scenes64

Draws fresh chains from averaged weights and prints FID, KID, precision, recall, density and coverage beside a
floor and a row to beat, says whether samples are copies of training pictures, and compares the energies of
training, held-out, sampled and other pictures. All numbers and their settings go to a JSON file.
"""

import argparse
from os.path import expanduser
from pathlib import Path

from ggcn import files
from ggcn.applications.export import load
from ggcn.cli.sample import PIPE_HELP, reading, usable
from ggcn.evaluation import feature_cache
from ggcn.evaluation.evaluate import MOST_SAMPLES, Request, evaluate
from ggcn.evaluation.features import NAMES, needed, network
from ggcn.evaluation.table import table
from ggcn.paths import user_path


def main() -> None:
    """The command line."""
    told = parser().parse_args()
    needed("torchmetrics")
    device = usable(told.device)
    net = network(told.features, told.weights, device)
    sampler = load(told.run, told.step, device)
    limits = {"count": told.count, "most": told.limit, "seed": told.seed, "batch": told.batch}
    with reading(told.allow_pipe) as how:
        request = Request(told.data, told.holdout, told.ood, cache=told.cache, config=how, **limits)
        found = evaluate(sampler, net, request)
    out = told.out or place(told.run, found)
    print(table(found))  # first, for nothing shall be lost where the file cannot be written
    files.write_json(out, found)
    print(f"\nall numbers: {out}")


def place(run: Path, found: dict) -> Path:
    """Where the numbers go by default: a folder in the run directory, or beside an exported file."""
    told = found["samples"]
    name = f"step_{told['step']:08d}-{found['features']}-{told['count']}-seed{told['seed']}.json"
    return run / "evaluations" / name if run.is_dir() else run.with_name(f"{run.stem}-{name}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=user_path, help="run directory, or exported .safetensors file")
    words.add_argument(
        "--data",
        default="",
        type=expanduser,
        metavar="SHARDS",
        help="training pictures; by default the run's own",
    )
    words.add_argument("--step", type=int, help="checkpoint to take; the newest whole one by default")
    words.add_argument(
        "--count",
        type=int,
        help=f"samples; by default as many as there are training pictures, up to {MOST_SAMPLES}",
    )
    words.add_argument(
        "--holdout",
        default="",
        type=expanduser,
        metavar="SHARDS",
        help="pictures never trained on; SHARDS/holdout where it exists",
    )
    words.add_argument(
        "--ood",
        action="append",
        default=[],
        type=expanduser,
        metavar="SHARDS",
        help="pictures of another kind; may be given several times",
    )
    words.add_argument("--allow-pipe", action="store_true", help=PIPE_HELP)
    words.add_argument("--features", choices=NAMES, default=NAMES[0])
    words.add_argument(
        "--weights", type=user_path, metavar="FILE", help="of Inception, which has none of its own"
    )
    words.add_argument("--limit", type=int, default=Request.most, help="pictures taken of a set at most")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--batch", type=int, default=64, help="chains at once")
    words.add_argument(
        "--cache",
        type=user_path,
        default=feature_cache.default_folder(),
        metavar="FOLDER",
        help="features of data sets; %(default)s",
    )
    words.add_argument("--out", type=user_path, metavar="FILE.json", help="by default in RUN/evaluations")
    words.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one")
    return words
