"""The page as a whole: its sections in their order, written to a file."""

from pathlib import Path

from ggcn import files
from ggcn.report import page
from ggcn.report.attempts import life
from ggcn.report.curves import curves, speed
from ggcn.report.facts import Facts, Jobs, read
from ggcn.report.health import health
from ggcn.report.outcome import headline, quality
from ggcn.report.samples import pictures
from ggcn.report.settings import configuration
from ggcn.run.directory import RunDir


def write(run: RunDir, out: Path | None = None, jobs: Jobs | None = None) -> Path:
    """Writes the report of a run, whole or not at all, to RUN/report.html or `out`; returns where it is.

    jobs: what SLURM has of it, as slurm.queue() says. Raises UserError where there is no run.
    """
    out = out or run.path / "report.html"
    files.write_text(out, html(read(run, jobs)))
    return out


def html(facts: Facts) -> str:
    """The report as a page that refers to nothing outside itself."""
    found = facts.status
    sections = [
        ("", headline(facts)),
        ("Quality", quality(facts)),
        ("Pictures", pictures(facts)),
        ("Curves", curves(facts)),
        ("Health", health(facts)),
        ("Life of the run", life(facts)),
        ("Speed", speed(facts)),
        ("Configuration", configuration(found.config) if found.config else page.note(found.fault)),
    ]
    subtitle = f"{found.run.path}, as of {page.clock(facts.now)}"
    return page.document(found.config.run if found.config else found.run.path.name, subtitle, sections)
