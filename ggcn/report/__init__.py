"""The report of a run: RUN/report.html, one self-contained page that is cheap enough to be written often; and a page
that compares runs.

They show what is there, also of a run that goes on, was killed or has just started; torn lines are skipped.
"""

from ggcn.report.comparison import NAME as COMPARISON
from ggcn.report.comparison import write as write_comparison
from ggcn.report.layout import write
from ggcn.report.run_data import read

__all__ = ["COMPARISON", "read", "write", "write_comparison"]
