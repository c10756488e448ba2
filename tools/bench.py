"""Benchmarks of this project and its alternatives on this machine:

    python tools/bench.py data --images PHOTOS.zip --out speed.md     # reading, building and resuming shards
    python tools/bench.py index                                       # opening 100 million samples
    python tools/bench.py store --local shards/faces --url s3://bucket/faces   # an object store next to files
    python tools/bench.py chain --sizes 32 64                         # a Langevin step
    python tools/bench.py step experiment=faces64                     # a training step, phase by phase

Alternatives do the same work in turns, round after round, so that changes of the machine's speed affect all of them.
A ratio is taken within each round; medians over the rounds are printed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.paths import user_path
from ggcn.precision import set_numeric_flags
from tools.benchmarks import chain, data, index, step, store
from tools.benchmarks.report import header


def main(argv: list[str] | None = None) -> int:
    """Prints the tables, and writes them to --out. Raises UserError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for benchmark in (data, index, store, chain, step):
        benchmark.add(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--out", type=user_path, metavar="FILE.md", help="also write the report to this file"
        )
    args = parser.parse_args(argv)
    set_numeric_flags()  # for the alternatives too: all compute in the same precision
    report = "\n\n".join([header(), *map(str, args.measure(args))])
    print(report)
    if args.out:
        files.write_text(args.out, report + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
