"""Writes a run's report, or the comparison of several, as one self-contained HTML page:

    python tools/report.py runs/faces64                    # runs/faces64/report.html
    python tools/report.py runs/a runs/b runs/c            # runs/comparison.html: curves laid over each other,
                                                           # settings that differ, final numbers, samples
    python tools/report.py runs/mysweep                    # the runs of a sweep: runs/mysweep/comparison.html
    python tools/report.py runs/faces64 --out faces.html

It also works while the runs go on, which it does not disturb.
"""

import argparse
import os
from pathlib import Path

from ggcn import report
from ggcn.launch.slurm import queued_jobs_or_none
from ggcn.paths import user_path
from ggcn.run.find import find


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE.html",
        help=f"by default RUN/report.html; of several runs {report.COMPARISON} in the folder that has them",
    )
    args = parser.parse_args()
    runs = list({run.path: run for run in find(args.runs)}.values())
    jobs = queued_jobs_or_none(runs)
    if len(runs) == 1:
        print(report.write(runs[0], args.out, jobs))
    else:
        folder = Path(os.path.commonpath([run.path.parent for run in runs]))
        print(report.write_comparison(runs, args.out or folder / report.COMPARISON, jobs))
