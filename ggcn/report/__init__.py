"""The report of a run: RUN/report.html, one self-contained page that is cheap enough to be written often.

It shows what is there, also of a run that goes on, was killed or has just started; torn lines are skipped.
"""

from ggcn.report.layout import write
from ggcn.report.run_data import read

__all__ = ["read", "write"]
