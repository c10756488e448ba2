"""Images -> WebDataset shards: python tools/make_shards.py SOURCE OUT --size N[,N...]

SOURCE is a folder (including its subfolders), a zip or a tar of images; Parquet or Arrow files as Hugging Face
has them, LMDB as LSUN ships it, WebDataset tars, CIFAR's batches, or a folder of any of these; a text file,
CSV or JSON lines of image URLs; or photographs inside installed packages: demo:faces (400 portraits of 40
people) or demo:scenes (8 colour photographs). OUT becomes a folder of shards with a manifest.json, ready for
training. A build that was stopped continues when the same command runs again.

    python tools/make_shards.py SOURCE --look [--size N]    # what would be taken, with a contact sheet
"""

import argparse
import time
from os.path import expanduser
from pathlib import Path

from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.shards import assembly, build, contact_sheet, declared_splits, sources
from ggcn.shards.assembly import Built
from ggcn.shards.crop import Options
from ggcn.shards.image_file import MAX_PIXELS
from ggcn.shards.pool import cores


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=expanduser)
    add("out", metavar="OUT", type=user_path, nargs="?")
    add(
        "--look",
        type=user_path,
        nargs="?",
        const=Path("look.png"),
        metavar="SHEET.png",
        help="builds nothing: prints what would be taken, and draws a sheet of samples (default: look.png)",
    )
    add(
        "--size",
        type=sizes,
        metavar="N[,N...]",
        help="pixels along a side of the square samples; several, like 32,128, build OUT/32 and OUT/128 at once, "
        "each the same as in a build of its own",
    )
    add(
        "--crop",
        "--crops",
        choices=["center", "top", "grid"],
        default="center",
        help="center: the largest centred square (default); top: the largest square at the top, for "
        "portraits; grid: many squares of a large scene, side by side at every one of --scales",
    )
    add(
        "--scales",
        type=int,
        nargs="+",
        metavar="K",
        help="with --crop grid: squares of K x size pixels, shrunk to size (default: 1 2)",
    )
    add(
        "--format",
        choices=["png", "jpg", "webp"],
        default="png",
        help="png (default) is lossless: an energy model learns the blocks and ringing of JPEG as if they "
        "were texture; webp without --quality is lossless too, 20 to 25 %% smaller, as fast; jpg is smallest",
    )
    add("--quality", type=int, metavar="1..100", help="of jpg (default 95), or for a lossy webp")
    add("--shuffle-seed", type=int, default=0, help="permutes the images, so that every shard is a mixture")
    add(
        "--shard-samples",
        type=int,
        metavar="K",
        help="samples in a shard (default: 64 MB of pixels, 1024 at most, fewer where that would make "
        "less than 16 shards; with --crop grid: 4096 and 4, so that several scenes are mixed)",
    )
    add(
        "--holdout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="holds out this share of the images, chosen by their names, as a data set in OUT/holdout",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="rejects images of more pixels, since a small file may declare more than fit into memory; raise it for "
        "very large scenes (default: %(default)s)",
    )
    add(
        "--zip-encoding",
        default="cp437",
        metavar="NAME",
        help="of the file names in an old zip that does not declare it, like cp932 from a Japanese Windows (default: "
        "%(default)s); the order and the held-out set depend on names",
    )
    add(
        "--column",
        default="",
        metavar="NAME",
        help="of a table: the column that holds the images, if not image",
    )
    add(
        "--split",
        default="",
        metavar="NAME",
        help="takes only train, validation or test, where the source declares splits (default: all images)",
    )
    add("--workers", type=int, default=cores(), help="processes (default: every core)")
    args = parser.parse_args(argv)
    if not args.look and not (args.out and args.size):
        parser.error("OUT and --size are required (or --look)")
    return args


def sizes(text: str) -> list[int]:
    """The numbers in a text like "32,128", each once."""
    return list(dict.fromkeys(map(int, text.split(","))))


def folders_of(args: argparse.Namespace) -> dict[Path, Options]:
    """The folders to build, and the options of each. Raises UserError."""
    if len(args.size) == 1:
        return {args.out: options_of(args, args.size[0])}
    return {args.out / str(size): options_of(args, size) for size in args.size}


def options_of(args: argparse.Namespace, size: int) -> Options:
    """The arguments that determine the shards. Raises UserError."""
    if args.scales and args.crop != "grid":
        raise UserError("--scales needs --crop grid; add that or leave --scales out")
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    return Options(
        size=size,
        crop=args.crop,
        scales=tuple(args.scales or (1, 2)),
        format=args.format,
        quality=args.quality,
        shuffle_seed=args.shuffle_seed,
        shard_samples=args.shard_samples,
        holdout=args.holdout,
        max_pixels=args.max_pixels,
    )


def report(built: Built) -> None:
    """Prints what a folder of shards contains and which images were rejected."""
    manifest = built.manifest
    print(
        f"{manifest.folder}: {manifest.samples} samples of {manifest.size} x {manifest.size} pixels in "
        f"{len(manifest.shards)} shards, {manifest.bytes / 1e6:.1f} MB"
    )
    if built.enlarged:
        print(f"  {built.enlarged} samples were enlarged: their images have fewer pixels")
    for warning, images in sorted(assembly.count_warnings(manifest.folder).items()):
        print(f"  {images} images: {warning}")
    if built.rejects:
        print(
            f"  {len(built.rejects)} images could not be used, listed in {manifest.folder / assembly.REJECTED}:"
        )
    for name, reason in built.rejects[:10]:
        print(f"    {printable(name)}: {reason}")


def printable(name: str) -> str:
    """A file name with its undecodable bytes escaped."""
    return name.encode(errors="backslashreplace").decode()


def find_source(args: argparse.Namespace) -> sources.Source:
    """The images that the arguments select. Raises UserError and OSError."""
    return sources.find(args.source, args.zip_encoding, args.column, args.split)


def look(args: argparse.Namespace) -> int:
    """Prints what would be taken, and draws the contact sheet. Raises UserError."""
    options = options_of(args, (args.size or [64])[0])
    try:
        source = find_source(args)
        lines = [*contact_sheet.describe(source, options, args.look)]
    except OSError as error:
        raise UserError(f"{error.filename or args.source}: {error.strerror or error}") from None
    for line in lines:
        print(printable(line))
    return 0


def print_splits(source: sources.Source, split: str) -> None:
    """Prints that a source declares several splits, all of which are taken."""
    counts = declared_splits.counts(source.entries)
    if len(counts) > 1 and not split:
        found = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        print(f"{source.location} declares splits ({found}) and all are taken; see --split")


def main(argv: list[str] | None = None) -> int:
    """Builds the shards and prints a summary. Raises UserError."""
    args = parse(argv)
    if args.look:
        return look(args)
    start = time.monotonic()
    folders = folders_of(args)
    try:
        source = find_source(args)
        built = build.build(source, folders, args.workers)
    except OSError as error:
        raise UserError(
            f"{error.filename or args.out}: {error.strerror or error}; fix that and run the same command "
            "again, finished shards are kept"
        ) from None
    if built is None:
        print(f"{args.out} is complete; nothing to do")
        return 0
    for each in built:
        report(each)
    if args.zip_encoding == "cp437" and sources.has_old_names(args.source):
        print(
            f"{args.source} does not declare the encoding of its names; they were read as cp437, see --zip-encoding"
        )
    print_splits(source, args.split)
    if source.skipped:
        print(f"{source.skipped} other files of {args.source} are not images by their names")
    seconds = time.monotonic() - start
    print(f"{len(source.entries)} images in {seconds:.1f} s, {len(source.entries) / seconds:.0f} images/s")
    return 0
