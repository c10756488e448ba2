"""Writes a trained model as one file, without what only training needs:

    python tools/export.py runs/faces64 --out faces64.safetensors

The file holds the averaged weights and, in its metadata, the config, which is also written next to it as YAML. Then

    import ggcn
    sampler = ggcn.load("faces64.safetensors")
    images = sampler.sample(16)        # [16, 3, 64, 64] in about [-1, 1]

needs torch, numpy, omegaconf and safetensors, but no DeepSpeed, Hydra, submitit or WebDataset.

    python tools/export.py runs/faces64 --card --out faces64 --license cc-by-4.0 --dataset "533 portraits, ..." \\
        --dataset-license "public domain"

writes a folder with model.safetensors, config.json, samples.png and README.md, a model card in the format of the
Hugging Face hub; the evaluation table is that of tools/evaluate.py at this step. Nothing is uploaded: that is
`hf upload user/name faces64`. ggcn.load takes the folder, and hf://user/name where huggingface_hub is installed.
"""

import argparse

from ggcn.applications.export import MODEL, export
from ggcn.applications.model_card import Publication
from ggcn.applications.publish import publish
from ggcn.errors import UserError
from ggcn.paths import user_path


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    texts = (args.name, args.license, args.dataset, args.dataset_license)
    if args.card:
        publication = Publication(args.name or args.out.resolve().name, *(text or "" for text in texts[1:]))
        trained = publish(args.run, args.out, publication, args.step)
        print(
            f"{trained.folder}: {args.out}/{{README.md,{MODEL},config.json,samples.png}}; read README.md first"
        )
        return
    if any(texts):
        raise UserError("--name, --license, --dataset and --dataset-license are for a model card; add --card")
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
    parser.add_argument("--out", type=user_path, required=True, help="NAME.safetensors; with --card a folder")
    parser.add_argument("--step", type=int, help="step of the checkpoint; by default the newest valid one")
    parser.add_argument("--card", action="store_true", help="write a folder with a model card")
    parser.add_argument("--name", help="of the model on its card; by default the folder's")
    parser.add_argument("--license", metavar="ID", help="of the weights, such as cc-by-4.0")
    parser.add_argument("--dataset", metavar="TEXT", help="what the training images are")
    parser.add_argument("--dataset-license", metavar="TEXT", help="of the training images")
    return parser
