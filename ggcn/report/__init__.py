"""A run on one page: RUN/report.html, a file that needs nothing else and is cheap enough to be written often.

It reads what is there, of a run that goes on, was killed or has just begun; torn lines are passed over.
"""

from ggcn.report.facts import read
from ggcn.report.layout import write

__all__ = ["read", "write"]
