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
from tools.benchmarks.data.cases import build_case, default_images, select_images
from tools.benchmarks.data.decoding import decoding
from tools.benchmarks.data.reading import large, reading, resuming
from tools.benchmarks.report import Table


def add(commands: Any) -> None:
    """The flags of `bench.py data`."""
    parser = commands.add_parser("data", help="reading, building and resuming shards")
    parser.add_argument("--images", help="folder, zip or tar of images; the demo's scenes by default")
    parser.add_argument(
        "--size", type=int, default=64, help="pixels along a side of the samples (default 64)"
    )
    parser.add_argument(
        "--crop", choices=["center", "grid"], help="center for --images, else grid; see make_shards"
    )
    parser.add_argument("--samples", type=int, default=2000, help="about how many (default 2000)")
    parser.add_argument("--seconds", type=float, default=0.5, help="duration of each measurement of a reader")
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of measurements per median; 3 at most for builders"
    )
    parser.add_argument(
        "--decoders",
        type=int,
        nargs="*",
        default=[32, 128, 1024],
        help="sizes of JPEGs for every decoder that is installed; none skips them",
    )
    parser.add_argument(
        "--large", type=int, nargs="*", default=[256, 512, 1024], help="sizes of large JPEGs; none skips them"
    )
    parser.set_defaults(measure=data)


def data(args: argparse.Namespace) -> Iterator[Table]:
    """The tables about data. Raises UserError for too few rounds or samples, and for unreadable images."""
    if args.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {args.rounds}")

    torch.set_num_threads(1)
    seconds, rounds = args.seconds, args.rounds
    crop = args.crop or ("center" if args.images else "grid")
    formats = [Options(args.size, crop, format=name) for name in ("png", "jpg")]
    with tempfile.TemporaryDirectory(prefix="ggcn-bench-") as name:
        temporary = Path(name)
        location = args.images or default_images(temporary)
        source, samples = select_images(location, formats[0], args.samples)
        cases = [build_case(source, options, temporary, 64) for options in formats]
        if args.decoders:
            yield decoding(args.decoders, temporary / "decoders", seconds, rounds)
        yield reading(cases, seconds, rounds)
        yield building(source, formats, samples, temporary, min(rounds, 3))
        yield resuming(cases[0], rounds)
        if args.large:
            yield large(args.large, temporary / "large", seconds, rounds)
