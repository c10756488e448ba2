"""Writes a trained model as one file, without all that only training needs:

    python tools/export.py runs/faces64 --out faces64.safetensors

The file holds the averaged weights and, in its metadata, the config, which also lies beside it as YAML. Then

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
    arguments = parser().parse_args()
    if arguments.out.suffix != ".safetensors":
        raise UserError(f"--out {arguments.out} must end in .safetensors")
    trained = export(arguments.run, arguments.out, arguments.step)
    print(f"{trained.folder}: {arguments.out}, {arguments.out.with_suffix('.yaml')}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=user_path, help="run directory")
    words.add_argument("--out", type=user_path, required=True, help="NAME.safetensors")
    words.add_argument("--step", type=int, help="checkpoint to take; the newest whole one by default")
    return words
