"""Elements of a self-contained HTML page: frame and style, tables, bars, images. All text is escaped and contains no
credentials."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ggcn.report.charts import COLOURS
from ggcn.report.text import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""keeps a browser from fetching anything, whatever the page contains"""
NONE = "-"
ROWS = 30
"""rows of a table at most, the last ones"""


@dataclass(frozen=True)
class Block:
    """A coloured section of a bar."""

    colour: int
    share: float
    title: str
    """shown on hover"""
    left: float | None = None
    """where it starts, as a share of the bar; by default where the previous one ends"""


def document(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page of (heading, HTML) sections; empty ones are left out."""
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{content}</section>"
        for heading, content in sections
        if content
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header><main>{body}</main></body></html>\n"
    )


def card(name: str, value: str, remark: str, share: float | None = None) -> str:
    """A card with one value; share: of a progress bar below it."""
    below = (
        f"<small>{escape(remark)}</small>" if share is None else bar([Block(0, share, remark)], tall=False)
    )
    return f'<div class="card"><span>{escape(name)}</span><strong>{escape(value)}</strong>{below}</div>'


def bar(blocks: Sequence[Block], tall: bool = True) -> str:
    """A bar of coloured sections."""
    pieces = "".join(
        f'<i class="b{block.colour % COLOURS}" title="{escape(block.title)}" style="{_position(block)}"></i>'
        for block in blocks
    )
    return f'<span class="bar{" tall" if tall else ""}">{pieces}</span>'


def _position(block: Block) -> str:
    width = f"width:{100 * min(max(block.share, 0), 1):.3f}%"
    return width if block.left is None else f"position:absolute;left:{100 * block.left:.3f}%;{width}"


def legend(entries: Sequence[tuple[int, str, str]]) -> str:
    """The legend of a bar: (colour, name, value)."""
    items = "".join(
        f'<span><i class="dot b{colour % COLOURS}"></i>{escape(name)} <b>{escape(value)}</b></span>'
        for colour, name, value in entries
    )
    return f'<div class="legend">{items}</div>'


def charts(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


def note(text: str, soft: bool = False) -> str:
    """A paragraph; soft: small and grey."""
    kind = ' class="hint"' if soft else ""
    return f"<p{kind}>{escape(text)}</p>"


def fold(summary: str, content: str) -> str:
    """`content`, HTML, which is collapsed at first."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def verbatim(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{escape(text)}</pre>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a scroll bar of its own where the page is narrow."""
    body = "".join(_cells(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{_cells(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"


def jpeg(data: bytes, size: tuple[int, int], caption: str, kind: str) -> str:
    """An embedded JPEG with a caption; `size`: width and height in pixels; `kind`: the CSS class, sheet (caption above
    the image) or row (caption at its left)."""
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{escape(caption)}" width="{size[0]}" height="{size[1]}" src="{source}">'
    return f'<figure class="{kind}"><figcaption>{escape(caption)}</figcaption>{image}</figure>'


def clock(moment: float) -> str:
    """Unix seconds as local date and time; NONE for what is not a time."""
    try:
        return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return NONE


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g} %"


def count(number: int, noun: str) -> str:
    """A number with its noun: "no run", "1 run", "2 runs"."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f6f8;--ink:#1b1f24;--soft:#5c6670;--rule:#dfe3e8;
--c0:#0072b2;--c1:#c44e00;--c2:#007f5c;--c3:#a5478a;--c4:#c98a00;--c5:#66707a}
@media (prefers-color-scheme:dark){:root{
--paper:#14171a;--card:#1e2328;--ink:#e6e9ec;--soft:#9aa5b0;--rule:#333a41;
--c0:#56b4e9;--c1:#f58a4b;--c2:#2fc79a;--c3:#e39bc8;--c4:#f0c040;--c5:#9aa5b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main{max-width:1440px;margin:0 auto;padding:0 20px}main{padding-bottom:40px}
h1{margin:20px 0 0;font-size:26px;overflow-wrap:anywhere}
header p{margin:0;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 10px;padding-bottom:4px;border-bottom:1px solid var(--rule)}
h3{font-size:16px;margin:20px 0 4px}p{margin:6px 0;overflow-wrap:anywhere}
.hint,small{color:var(--soft);font-size:13px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:18px}
.card{background:var(--card);border-radius:8px;padding:10px 14px;min-width:0}
.card>*{display:block}.card>span{color:var(--soft);font-size:13px}.card>small{overflow-wrap:anywhere}
.card strong{font-size:19px;line-height:1.3;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:22px 26px;margin-top:10px}
figure{margin:0;min-width:0}figcaption{font-weight:600}figcaption small{font-weight:400;margin-left:4px}
.chart{display:flex;flex-direction:column}.chart>svg{margin-top:auto;width:100%;height:auto;display:block}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;font-size:13px;color:var(--soft);margin:2px 0 4px}
.legend b{color:var(--ink);font-variant-numeric:tabular-nums}.legend span{white-space:nowrap}
.key{width:22px;height:8px;margin-right:4px;vertical-align:middle}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
svg path{fill:none;stroke-width:1.7;stroke-linejoin:round}
svg .faint{stroke-opacity:.28;stroke-width:1}.dashed{stroke-dasharray:5 4}svg .faint.dashed{stroke-dasharray:none}
.rule{stroke:var(--rule)}.level{stroke:var(--soft);stroke-dasharray:2 3}.mark{stroke-width:1.5}
.restart{stroke:var(--soft);stroke-dasharray:1 4;stroke-linecap:round}.incident{stroke:var(--c1)}
.best{stroke:var(--c2);stroke-dasharray:3 3}circle{stroke:var(--paper);stroke-width:1}
.bar{position:relative;display:flex;height:6px;border-radius:3px;overflow:hidden;background:var(--rule);margin:6px 0}
.bar.tall{height:16px;border-radius:4px}.bar i{display:block;height:100%;min-width:1px}
.dot{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:5px}
.ends{display:flex;justify-content:space-between;color:var(--soft);font-size:13px;margin-bottom:8px}
img{max-width:100%;height:auto;display:block;border-radius:3px}.sheet{margin:8px 0}
.row{display:flex;align-items:center;gap:10px;margin:3px 0}.row img{min-width:0;flex:0 1 auto}
.row figcaption{flex:0 0 5.5em;text-align:right;font-weight:400;font-size:13px;color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px;margin:6px 0}
th{text-align:left;color:var(--soft);font-weight:600}
td,th{padding:3px 16px 3px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td:first-child{white-space:nowrap}
details{margin:8px 0}summary{cursor:pointer;font-weight:600}
pre{font-size:13px;overflow-x:auto;background:var(--card);padding:12px;border-radius:8px}
@media (max-width:520px){header,main{padding:0 12px}
.row{display:block}.row figcaption{text-align:left}
.sheet{overflow-x:auto}.sheet img,.row img{max-width:none}.sheet figcaption,.row figcaption{position:sticky;left:0}}
""" + "".join(
    f".c{place}{{stroke:var(--c{place})}}circle.c{place}{{fill:var(--c{place})}}"
    f".b{place}{{background:var(--c{place})}}\n"
    for place in range(COLOURS)
)
