"""What was wrong with a run: verdicts along its steps, and its divergences."""

from collections.abc import Sequence
from itertools import groupby

from ggcn.report import page
from ggcn.report.facts import Facts, Record, reasons, told

VERDICTS = {"healthy": 2, "suspect": 4, "diverged": 1}
"""their colours"""


def health(facts: Facts) -> str:
    """The verdicts, and the divergences as a table."""
    judged = [line for line in facts.lines if "health" in line]
    ribbon = _ribbon(judged) if judged else ""
    if not facts.incidents:
        return ribbon + page.note("No divergence.")
    rows = [
        [told(each, "step"), reasons(each), _goal(each), told(each, "time")]
        for each in facts.incidents[-page.ROWS :]
    ]
    return ribbon + page.table(["diverged at", "why", "went back to", "when"], rows)


def _goal(incident: Record) -> str:
    return "gave up" if incident.get("gave_up") else f"step {told(incident, 'rolled_back_to')}"


def _ribbon(judged: Sequence[Record]) -> str:
    """The verdicts along the logged steps as a bar, how many there are of each, and the last one's reasons."""
    verdicts = [str(line["health"]) for line in judged]
    shares = {verdict: verdicts.count(verdict) / len(verdicts) for verdict in dict.fromkeys(verdicts)}
    blocks = []
    for verdict, group in groupby(judged, lambda line: str(line["health"])):
        stretch = list(group)
        words = f"{verdict} from step {stretch[0]['step']}"
        blocks.append(page.Block(VERDICTS.get(verdict, 5), len(stretch) / len(judged), words))
    key = page.key(
        [(VERDICTS.get(verdict, 5), verdict, page.percent(share)) for verdict, share in shares.items()]
    )
    because = f": {reasons(judged[-1])}" if judged[-1].get("reasons") else ""
    return key + page.bar(blocks) + page.note(f"Step {judged[-1]['step']:,}: {verdicts[-1]}{because}.")
