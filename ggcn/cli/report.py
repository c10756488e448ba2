"""Writes a run's report, one self-contained HTML page:

    python tools/report.py runs/faces64                    # runs/faces64/report.html
    python tools/report.py runs/faces64 --out faces.html

It also works while the run goes on, which it does not disturb.
"""

import argparse

from ggcn import report
from ggcn.launch.slurm import queued_jobs_or_none
from ggcn.paths import user_path
from ggcn.run.directory import RunDir


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=user_path, help="run directory")
    parser.add_argument("--out", type=user_path, metavar="FILE.html", help="by default RUN/report.html")
    args = parser.parse_args()
    run = RunDir(args.run.resolve())
    print(report.write(run, args.out, queued_jobs_or_none([run])))
