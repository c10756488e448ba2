"""A table of runs that is drawn again and again on a terminal, with rich."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ggcn.run.display import rate_text
from ggcn.run.sparkline import sparkline
from ggcn.run.status import duration

COLOURS = {
    "running": "blue",
    "waiting": "yellow",
    "complete": "green",
    "finished": "green",
    "gave up": "red",
    "killed": "red",
    "unreadable": "red",
}
HEALTH = {"healthy": "green", "suspect": "yellow", "diverged": "red"}
NARROW = 110
"""columns of a terminal below which the table leaves some out"""


class LiveTable:
    """The table, from its first drawing to the end of the with statement."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False)

    def __enter__(self) -> "LiveTable":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, records: Sequence[dict[str, Any]]) -> None:
        """Draws the records, as many as the terminal has lines for; live ones first where there are more."""
        room = max((self.console.height - 4), 3)
        shown = list(records)
        if len(shown) > room:
            shown = sorted(shown, key=lambda record: not record["live"])[: room - 1]
        parts: list[Any] = [table(shown, self.console.width)]
        if omitted := len(records) - len(shown):
            parts.append(Text(f"and {omitted} more runs", style="dim"))
        self.live.update(Group(*parts), refresh=True)


def table(records: Sequence[dict[str, Any]], width: int) -> Table:
    """A row per run: state, a bar with the time that is left, rate, the curve of its FID or R^2, health."""
    wide = width >= NARROW
    result = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("run", "state", "", "step", "left", *(["images/s"] if wide else []), "score", "health"):
        justify: Any = "right" if head in ("step", "left", "images/s") else "left"
        result.add_column(head, justify=justify, no_wrap=True)
    for record in records:
        result.add_row(*_row(record, wide))
    return result


def _row(record: dict[str, Any], wide: bool) -> list[Any]:
    state = record["state"]
    step, total = record.get("step") or 0, record.get("total_steps")
    left, rate, health = (record.get(name) for name in ("seconds_left", "images_per_second", "health"))
    return [
        Text(record["name"], style="bold"),
        Text(state, style=COLOURS.get(state, "default")),
        ProgressBar(total or 1, min(step, total or 1) if total else 0, width=24 if wide else 12),
        f"{step:,}/{f'{total:,}' if total else '?'}",
        duration(left) if left is not None else "",
        *([rate_text(rate) if rate else ""] if wide else []),
        _score(record, 20 if wide else 8),
        Text(health or "", style=HEALTH.get(health or "", "default")),
    ]


def _score(record: dict[str, Any], width: int) -> Text:
    if not record.get("score"):
        return Text("")
    curve = sparkline([value for _, value in record["scores"]], width)
    return Text.assemble(f"{record['score']} {record['score_last']:.4g} ", (curve, "cyan"))
