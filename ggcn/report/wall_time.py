"""What the wall time of a run was spent on, and the files that tell more."""

from urllib.parse import quote

from markupsafe import Markup

from ggcn.report import page
from ggcn.report.axes import percent
from ggcn.report.run_data import RunData
from ggcn.run import goodput
from ggcn.run.status import duration

LISTED = 20
"""files of RUN/profile that are named at most"""


def wall_time(data: RunData) -> Markup:
    """Goodput and the share of each use of wall time, as a bar, and the files in RUN/profile."""
    return _shares(data) + _profiles(data)


def _shares(data: RunData) -> Markup:
    books = goodput.account(goodput.read(data.status.run.path))
    if books.wall_s <= 0:
        return page.note("No step on record yet.", soft=True)
    uses = [(name, books.seconds[kind]) for kind, name in goodput.KINDS.items() if books.seconds[kind] > 0]
    blocks = [page.Block(colour, seconds / books.wall_s, name) for colour, (name, seconds) in enumerate(uses)]
    legend = [(colour, name, duration(seconds)) for colour, (name, seconds) in enumerate(uses)]
    lost = f"; {books.lost_steps:,} steps were lost and computed again" if books.lost_steps else ""
    sentence = (
        f"Goodput {percent(books.share)} of {duration(books.wall_s)}: the share in steps that lasted{lost}."
    )
    return page.note(sentence) + page.legend(legend) + page.bar(blocks)


def _profiles(data: RunData) -> Markup:
    names = sorted(path.name for path in data.status.run.profile.glob("*.*"))
    if not names:
        return Markup()
    more = f" and {len(names) - LISTED} more in {data.status.run.profile}" if len(names) > LISTED else ""
    entries = [(f"profile/{quote(name)}", name) for name in names[:LISTED]]
    return page.links("Profiles:", entries, more)
