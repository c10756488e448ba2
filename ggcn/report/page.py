"""Elements of a page: cards, bars, tables, images. All text is escaped and contains no credentials."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from ggcn.report.charts import COLOURS
from ggcn.report.templates import element

NONE = "-"
ROWS = 30
"""rows of a table at most, the last ones"""
TALL, FLAT = 16, 6
"""heights of bars in pixels"""


@dataclass(frozen=True)
class Block:
    """A coloured section of a bar."""

    colour: int
    share: float
    title: str
    """shown on hover"""
    left: float | None = None
    """where it starts, as a share of the bar; by default where the previous one ends"""


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table."""

    text: str
    order: float | str
    """what it is sorted by"""
    best: bool = False
    """whether it is the best of its column"""


@dataclass(frozen=True)
class Row:
    """A row of a sortable table; `key` is what shows and hides it, `style` the CSS classes of its line in charts."""

    key: str
    style: str
    cells: Sequence[Cell]


def card(name: str, value: str, remark: str, share: float | None = None, kind: str = "") -> Markup:
    """A card with one value; share: of a progress bar below it; kind: a CSS class."""
    return element("card", name, value, remark, share if share is None else min(max(share, 0), 1), kind)


def cards(items: Sequence[Markup]) -> Markup:
    """Cards side by side."""
    return element("cards", items)


def bar(blocks: Sequence[Block]) -> Markup:
    """A bar of coloured sections."""
    placed, end = [], 0.0
    for block in blocks:
        left = end if block.left is None else block.left
        share = min(max(block.share, 0), 1)
        placed.append((block.colour % COLOURS, left, share, block.title))
        end = left + share
    return element("bar", placed, TALL)


def ends(left: str, right: str) -> Markup:
    """What a bar begins and ends with, below it."""
    return element("ends", left, right)


def legend(entries: Sequence[tuple[int, str, str]]) -> Markup:
    """The legend of a bar: (colour, name, value)."""
    return element("legend", [(colour % COLOURS, name, value) for colour, name, value in entries])


def page_legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """The legend of all charts of a page, which shows and hides what has a key: (key, CSS classes, name)."""
    return element("page_legend", entries)


def charts(figures: Sequence[Markup]) -> Markup:
    """Figures side by side where there is room."""
    return element("charts", figures) if any(figures) else Markup("")


def note(text: str, soft: bool = False) -> Markup:
    """A paragraph; soft: small and grey."""
    return element("note", text, soft)


def links(before: str, entries: Sequence[tuple[str, str]], remark: str = "") -> Markup:
    """A line of links: (address relative to the page, name)."""
    return element("links", before, entries, remark)


def subheading(text: str) -> Markup:
    """A heading below that of a section."""
    return element("subheading", text)


def scrolling(parts: Sequence[Markup]) -> Markup:
    """Parts below each other that may be wider than the page."""
    return element("scrolling", Markup("").join(parts))


def fold(summary: str, content: Markup) -> Markup:
    """`content`, which is collapsed at first."""
    return element("fold", summary, content)


def verbatim(text: str) -> Markup:
    """Preformatted text."""
    return element("verbatim", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table with a scroll bar of its own where the page is narrow."""
    return element("table", head, rows)


def sortable(head: Sequence[str], rows: Sequence[Row]) -> Markup:
    """A table whose rows a click on a heading sorts."""
    return element("sortable", head, rows)


def jpeg(data: bytes, size: tuple[int, int], caption: str, kind: str, key: str = "") -> Markup:
    """An embedded JPEG with a caption; `size`: width and height in pixels; `kind`: the CSS class, sheet (caption above
    the image) or row (caption at its left); `key`: what shows and hides it."""
    source = Markup(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")  # noqa: S704 - base64 has no markup
    return element("jpeg", source, size, caption, kind, key)


def clock(moment: float) -> str:
    """Unix seconds as local date and time; NONE for what is not a time."""
    try:
        return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return NONE


def count(number: int, noun: str) -> str:
    """A number with its noun: "no run", "1 run", "2 runs"."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
