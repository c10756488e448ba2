"""Writes a trained model as one file, without what only training needs:

    python tools/export.py runs/faces64 --out faces64.safetensors

The file holds the averaged weights and, in its metadata, the config, which is also written next to it as YAML. Then

    import ggcn
    sampler = ggcn.load("faces64.safetensors")
    images = sampler.sample(16)        # [16, 3, 64, 64] in about [-1, 1]

needs torch, numpy, omegaconf and safetensors, but no DeepSpeed, Hydra, submitit or WebDataset.
"""

import argparse

from ggcn.applications.export import export
from ggcn.errors import UserError
from ggcn.paths import user_path


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out} must end in .safetensors")
    trained = export(args.run, args.out, args.step)
    print(f"{trained.folder}: {args.out}, {args.out.with_suffix('.yaml')}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=user_path, help="run directory")
    parser.add_argument("--out", type=user_path, required=True, help="NAME.safetensors")
    parser.add_argument("--step", type=int, help="step of the checkpoint; by default the newest valid one")
    return parser
