"""Work that runs next to the training."""

import logging
from collections.abc import Callable
from threading import Thread

from ggcn import report
from ggcn.run.directory import RunDir

log = logging.getLogger(__name__)


class BackgroundWork:
    """A thread of rank 0 for work that neither its next steps nor other ranks wait for, one job at a time.

    A failure is logged, and does not end the run.
    """

    def __init__(self) -> None:
        self.thread: Thread | None = None

    def start(self, name: str, *tasks: Callable[[], object]) -> None:
        """Runs `tasks` in a thread, once the previous job is done; `name`: what the job is, for the log."""
        self.wait()
        self.thread = Thread(target=run_logged, args=(name, *tasks), name=name)
        self.thread.start()

    def wait(self) -> None:
        """Returns when no job is running."""
        if self.thread:
            self.thread.join()
            self.thread = None


def run_logged(name: str, *tasks: Callable[[], object]) -> None:
    """Runs `tasks`; one that fails is logged, and the next one runs."""
    for task in tasks:
        try:
            task()
        except Exception:  # whatever the run's folder may contain by now, or its disk may lack
            log.warning("%s failed", name, exc_info=True)


def refresh_report(run: RunDir) -> None:
    """Writes report.html again; a failure is logged."""
    run_logged("refreshing report.html", lambda: report.write(run))
