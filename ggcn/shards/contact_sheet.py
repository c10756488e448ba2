"""A look at a source before its shards are built: what would be taken, and a sheet of samples."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ggcn import files
from ggcn.shards import crop, declared_splits, image_file, sources
from ggcn.shards.crop import Options
from ggcn.shards.entry import Entry
from ggcn.shards.shard_spec import name_hash

SHOWN = 64
COLUMNS = 8
MAX_SHEET_SIDE = 2048
"""pixels along a side of the sheet"""


def describe(source: sources.Source, options: Options, sheet: Path) -> Iterator[str]:
    """Lines about a source, of which SHOWN images (the same ones every time) are read; writes the sheet of them.

    Raises UserError, and OSError when the sheet cannot be written.
    """
    files.check_writable(sheet)
    yield f"{source.location}: {len(source.entries)} images; {_kinds(source.entries)}"
    for split, count in sorted(declared_splits.counts(source.entries).items()):
        yield f"  split {split}: {count} images"
    if source.skipped:
        yield f"  {source.skipped} other files are not images by their names"
    chosen = chosen_entries(source.entries)
    looks = [_look(source.location, entry, options) for entry in chosen]
    tiles = [tile for _, tile in looks if tile is not None]
    yield f"of {len(chosen)} images that were read:"
    for line, count in Counter(line for line, _ in looks).most_common(12):
        yield f"  {count} {line}"
    annotated = next(((entry, said) for entry in chosen if (said := _annotation(source, entry))), None)
    if annotated:
        yield f"kept with each image, for example {annotated[0].name}: {json.dumps(annotated[1])[:1000]}"
    if tiles:
        draw(tiles, options.size).save(sheet, format="PNG")
        yield f"{sheet}: {len(tiles)} samples of {options.size} x {options.size} pixels, --crop {options.crop}"


def chosen_entries(entries: list[Entry]) -> list[Entry]:
    """SHOWN images of a source, in its order: of groups that are read as one, few, so that looking is fast."""
    groups = sorted({entry.group for entry in entries if entry.group}, key=lambda group: name_hash(group, 0))
    some = set(groups[: SHOWN // COLUMNS])
    candidates = [entry for entry in entries if not entry.group or entry.group in some]
    chosen = sorted(candidates, key=lambda entry: name_hash(entry.name, 0))[:SHOWN]
    return sorted(chosen, key=lambda entry: entry.name)


def draw(tiles: list[Image.Image], size: int) -> Image.Image:
    """Square samples in rows of COLUMNS, small ones enlarged by a whole number, large ones shrunk."""
    side = min(size * max(1, 64 // size), MAX_SHEET_SIDE // COLUMNS)
    rows = math.ceil(len(tiles) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + 2), rows * (side + 2)), "white")
    how = Image.Resampling.NEAREST if side >= size else Image.Resampling.LANCZOS
    for number, tile in enumerate(tiles):
        place = number % COLUMNS * (side + 2) + 1, number // COLUMNS * (side + 2) + 1
        sheet.paste(tile.resize((side, side), how), place)
    return sheet


def _kinds(entries: list[Entry]) -> str:
    counts = Counter(
        (entry.kind, entry.container.rpartition("/")[0] + "/" * bool(entry.container)) for entry in entries
    )
    places = len({entry.container for entry in entries})
    kinds = ", ".join(sorted({kind for kind, _ in counts}))
    return f"kind {kinds}" + (f" in {places} files" if places > 1 else "")


def _look(location: str, entry: Entry, options: Options) -> tuple[str, Image.Image | None]:
    """What an image is, and its first sample; why it would be rejected, and None."""
    try:
        data = sources.read(location, entry)
        with image_file.open_image(data, options.max_pixels) as image:
            what = f"{image.format} of {_rounded(min(image.size))} pixels along the shorter side"
        ((_, sample), *_) = crop.samples_of(data, options, {})
        return what, Image.open(io.BytesIO(sample)).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        return f"would be rejected: {crop.reject_reason(error)}", None


def _rounded(side: int) -> str:
    """A side as it is if it is small, or as a range of a factor of two."""
    lower = 1 << (side.bit_length() - 1)
    return str(side) if side <= 64 or side == lower else f"{lower} to {2 * lower - 1}"


def _annotation(source: sources.Source, entry: Entry) -> dict[str, object]:
    try:
        return sources.annotation(source.location, entry)
    except MemoryError:
        raise
    except Exception:
        return {}
