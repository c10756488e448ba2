"""Writes a run's report, one page that needs nothing else:

    python tools/report.py runs/faces64                    # runs/faces64/report.html
    python tools/report.py runs/faces64 --out faces.html

Also while the run goes on: it only reads.
"""

import argparse

from ggcn import report
from ggcn.cli.status import jobs_or_none
from ggcn.paths import user_path
from ggcn.run.directory import RunDir


def main() -> None:
    """The command line."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=user_path, help="run directory")
    words.add_argument("--out", type=user_path, metavar="FILE.html", help="by default RUN/report.html")
    told = words.parse_args()
    run = RunDir(told.run.resolve())
    print(report.write(run, told.out, jobs_or_none([run])))
