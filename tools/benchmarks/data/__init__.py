"""`bench.py data`: decoding, reading, building and resuming shards."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ggcn.errors import UserError
from ggcn.shards.crop import Options
from tools.benchmarks.data.building import building
from tools.benchmarks.data.cases import chosen, default_images, prepared
from tools.benchmarks.data.decoding import decoding
from tools.benchmarks.data.reading import large, reading, resuming
from tools.benchmarks.report import Table


def add(commands: Any) -> None:
    """The flags of `bench.py data`."""
    words = commands.add_parser("data", help="reading, building and resuming shards")
    words.add_argument("--images", help="folder, zip or tar of images; the demo's scenes by default")
    words.add_argument("--size", type=int, default=64, help="pixels along a side of the samples (default 64)")
    words.add_argument(
        "--crop", choices=["center", "grid"], help="center for --images, else grid; see make_shards"
    )
    words.add_argument("--samples", type=int, default=2000, help="about so many (default 2000)")
    words.add_argument("--seconds", type=float, default=0.5, help="of each measurement of a reader")
    words.add_argument(
        "--rounds", type=int, default=5, help="medians are over so many; builders have 3 at most"
    )
    words.add_argument(
        "--decoders",
        type=int,
        nargs="*",
        default=[32, 128, 1024],
        help="sizes of JPEGs for every decoder that is installed; none skips them",
    )
    words.add_argument(
        "--large", type=int, nargs="*", default=[256, 512, 1024], help="sizes of large JPEGs; none skips them"
    )
    words.set_defaults(measure=data)


def data(arguments: argparse.Namespace) -> Iterator[Table]:
    """The tables about data. Raises UserError for too few rounds or samples, and for unreadable images."""
    if arguments.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {arguments.rounds}")

    torch.set_num_threads(1)
    seconds, rounds = arguments.seconds, arguments.rounds
    kind = arguments.crop or ("center" if arguments.images else "grid")
    formats = [Options(arguments.size, kind, format=one) for one in ("png", "jpg")]
    with tempfile.TemporaryDirectory(prefix="ggcn-bench-") as name:
        temporary = Path(name)
        place = arguments.images or default_images(temporary)
        source, samples = chosen(place, formats[0], arguments.samples)
        cases = [prepared(source, options, temporary, 64) for options in formats]
        if arguments.decoders:
            yield decoding(arguments.decoders, temporary / "decoders", seconds, rounds)
        yield reading(cases, seconds, rounds)
        yield building(source, formats, samples, temporary, min(rounds, 3))
        yield resuming(cases[0], rounds)
        if arguments.large:
            yield large(arguments.large, temporary / "large", seconds, rounds)
