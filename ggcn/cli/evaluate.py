"""Measures a trained run:

    python tools/evaluate.py runs/faces64                                  # against the shards it was trained on
    python tools/evaluate.py faces64.safetensors --data shards/faces64 --ood shards/scenes64

Draws new chains from averaged weights and prints FID, KID, precision, recall, density and coverage next to those of
real images and of a Gaussian baseline, tells whether samples are copies of training images, and compares the energies
of training, held-out, sampled and other images. All numbers and their settings go to a JSON file.
"""

import argparse
from os.path import expanduser
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.applications.export import load
from ggcn.cli.options import PIPE_HELP, add_chain_flags, data_config, device, with_chain_flags
from ggcn.evaluation import feature_cache
from ggcn.evaluation.evaluate import MAX_SAMPLES, Request, evaluate
from ggcn.evaluation.features import NAMES, network, require
from ggcn.evaluation.table import table
from ggcn.paths import user_path
from ggcn.sampling.settings import SamplerSettings


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    require("torchmetrics")
    torch_device = device(args.device)
    net = network(args.features, args.weights, torch_device)
    sampler = with_chain_flags(load(args.run, args.step, torch_device), args)
    limits = {"count": args.count, "limit": args.limit, "seed": args.seed, "batch": args.batch}
    with data_config(args.allow_pipe) as config:
        request = Request(args.data, args.holdout, args.ood, cache=args.cache, config=config, **limits)
        result = evaluate(sampler, net, request)
    out = args.out or default_out(args.run, result, sampler.settings)
    print(table(result))  # first, so that the numbers are not lost where the file cannot be written
    files.write_json(out, result)
    print(f"\nall numbers: {out}")


def default_out(run: Path, result: dict[str, Any], settings: SamplerSettings) -> Path:
    """Where the numbers go by default: a folder in the run directory, or next to an exported file. Other chains than
    the model's own have other names."""
    samples = result["samples"]
    name = f"step_{samples['step']:08d}-{result['features']}-{samples['count']}-seed{samples['seed']}{settings}.json"
    return run / "evaluations" / name if run.is_dir() else run.with_name(f"{run.stem}-{name}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=user_path, help="run directory, or exported .safetensors file")
    parser.add_argument(
        "--data",
        default="",
        type=expanduser,
        metavar="SHARDS",
        help="training images; by default the run's own",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint; by default the newest valid one")
    parser.add_argument(
        "--count",
        type=int,
        help=f"samples; by default as many as there are training images, up to {MAX_SAMPLES}",
    )
    parser.add_argument(
        "--holdout",
        default="",
        type=expanduser,
        metavar="SHARDS",
        help="images never trained on; SHARDS/holdout where it exists",
    )
    parser.add_argument(
        "--ood",
        action="append",
        default=[],
        type=expanduser,
        metavar="SHARDS",
        help="images of another kind; may be repeated",
    )
    parser.add_argument("--allow-pipe", action="store_true", help=PIPE_HELP)
    parser.add_argument("--features", choices=NAMES, default=NAMES[0])
    parser.add_argument(
        "--weights", type=user_path, metavar="FILE", help="weights of Inception, which its package lacks"
    )
    add_chain_flags(parser)
    parser.add_argument("--limit", type=int, default=Request.limit, help="images per set at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="chains at once")
    parser.add_argument(
        "--cache",
        type=user_path,
        default=feature_cache.default_folder(),
        metavar="FOLDER",
        help="features of data sets; %(default)s",
    )
    parser.add_argument("--out", type=user_path, metavar="FILE.json", help="by default in RUN/evaluations")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
    return parser
