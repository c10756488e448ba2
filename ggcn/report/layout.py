"""The page: its sections in order, written to a file."""

from pathlib import Path

from ggcn import files
from ggcn.report import page, templates
from ggcn.report.attempts import attempts
from ggcn.report.curves import curves, throughput
from ggcn.report.health import health
from ggcn.report.outcome import evaluations, headline
from ggcn.report.run_data import Jobs, RunData, read
from ggcn.report.samples import samples
from ggcn.report.settings import configuration
from ggcn.report.wall_time import wall_time
from ggcn.run.directory import RunDir


def write(run: RunDir, out: Path | None = None, jobs: Jobs | None = None) -> Path:
    """Writes the report of a run atomically to RUN/report.html or `out`; returns its path.

    `jobs`: as squeue has them, None where it was not asked. Raises UserError where there is no run.
    """
    out = out or run.path / "report.html"
    files.write_text(out, html(read(run, jobs)))
    return out


def html(data: RunData) -> str:
    """The report as a self-contained page."""
    status = data.status
    sections = [
        ("", headline(data)),
        ("Evaluations", evaluations(data)),
        ("Samples", samples(data)),
        ("Training curves", curves(data)),
        ("Health", health(data)),
        ("Attempts", attempts(data)),
        ("Throughput", throughput(data)),
        ("Wall time", wall_time(data)),
        ("Config", configuration(status.config) if status.config else page.note(status.config_error)),
    ]
    subtitle = f"{status.run.path}, as of {page.clock(data.now)}"
    title = status.config.run if status.config else status.run.path.name
    return templates.document(title, subtitle, sections)
