"""Measures the project beside what one would use otherwise, on the machine at hand:

    python tools/bench.py data --images PHOTOS.zip --out speed.md     # reading, building and resuming shards
    python tools/bench.py index                                       # opening 100 million samples
    python tools/bench.py chain --sizes 32 64                         # a Langevin step
    python tools/bench.py step experiment=faces64                     # a training step, phase by phase

Rivals do the same work in turns, round after round, so that a machine that slows down slows down all of them.
A ratio is taken within each round; what is printed are the medians over the rounds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.paths import user_path
from ggcn.precision import set_numeric_flags
from tools.benchmarks import chain, data, index, step
from tools.benchmarks.report import header


def main(argv: list[str] | None = None) -> int:
    """Prints the tables, and writes them to --out. Raises UserError."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = cli.add_subparsers(required=True, metavar="WHAT")
    for part in (data, index, chain, step):
        part.add(commands)
    for words in commands.choices.values():
        words.add_argument("--out", type=user_path, metavar="FILE.md", help="writes the report there too")
    arguments = cli.parse_args(argv)
    set_numeric_flags()  # of the rivals too: all multiply in the same numbers
    report = "\n\n".join([header(), *map(str, arguments.measure(arguments))])
    print(report)
    if arguments.out:
        files.write_text(arguments.out, report + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
