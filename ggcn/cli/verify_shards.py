"""Checks a folder of shards: python tools/verify_shards.py OUT [--decode | --convert]

Every file that the manifest names is there, has the right size and sha256, is a tar that webdataset reads,
and each sample's bytes lie where the manifest says. Prints one line per problem; the exit code is 1 if there
is any. A held-out set in OUT/holdout is checked with it. The manifests of an older make_shards hold each
sample's byte range themselves; --convert moves these into index.bin, and leaves the shards as they are.
"""

import argparse

from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.shards import verify
from ggcn.shards.pool import cores


def main(argv: list[str] | None = None) -> int:
    """Prints the problems, or that there are none. Raises UserError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=user_path)
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument(
        "--convert", action="store_true", help="only convert the manifest of an older version"
    )
    parser.add_argument("--workers", type=int, default=cores(), help="default: every core")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    if args.convert:
        for folder in verify.folders(args.out):
            print(
                f"{folder}: manifest {'converted' if verify.convert(folder) else 'is of this version already'}"
            )
        return 0
    manifests, problems = verify.verify(args.out, args.decode, args.workers)
    for problem in problems:
        print(problem)
    samples, shards = sum(each.samples for each in manifests), sum(len(each.shards) for each in manifests)
    print(f"{args.out}: {samples} samples in {shards} shards, {len(problems) or 'no'} problems")
    if problems:
        print("delete the damaged files and run make_shards as before: only these are written again")
    return 1 if problems else 0
