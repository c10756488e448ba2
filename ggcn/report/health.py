"""The health of a run: verdicts by step, and divergences."""

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from ggcn.report import page
from ggcn.report.axes import percent
from ggcn.report.run_data import Record, RunData, reasons, text

VERDICTS = {"healthy": 2, "suspect": 4, "diverged": 1}
"""colours of the verdicts"""


def health(data: RunData) -> Markup:
    """The verdicts as a bar, and the divergences as a table."""
    steps = [record for record in data.metrics if "health" in record]
    verdicts = _verdict_bar(steps) if steps else Markup("")
    if not data.incidents:
        return verdicts + page.note("No divergence.")
    rows = [
        [text(incident, "step"), reasons(incident), _rollback(incident), text(incident, "time")]
        for incident in data.incidents[-page.ROWS :]
    ]
    return verdicts + page.table(["diverged at step", "reason", "rolled back to", "time"], rows)


def _rollback(incident: Record) -> str:
    return "gave up" if incident.get("gave_up") else f"step {text(incident, 'rolled_back_to')}"


def _verdict_bar(steps: Sequence[Record]) -> Markup:
    """The verdicts of the logged steps as a bar, their shares, and the reasons of the last one."""
    verdicts = [str(record["health"]) for record in steps]
    shares = {verdict: verdicts.count(verdict) / len(verdicts) for verdict in dict.fromkeys(verdicts)}
    blocks = []
    for verdict, group in groupby(steps, lambda record: str(record["health"])):
        stretch = list(group)
        title = f"{verdict} from step {stretch[0]['step']}"
        blocks.append(page.Block(VERDICTS.get(verdict, 5), len(stretch) / len(steps), title))
    legend = page.legend(
        [(VERDICTS.get(verdict, 5), verdict, percent(share)) for verdict, share in shares.items()]
    )
    last = steps[-1]
    reason = f": {reasons(last)}" if last.get("reasons") else ""
    return legend + page.bar(blocks) + page.note(f"Step {last['step']:,}: {verdicts[-1]}{reason}.")
