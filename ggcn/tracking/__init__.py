"""Trackers: where the metrics and samples of a run go besides metrics.jsonl (TensorBoard, Weights & Biases, MLflow, or
a class of the user's).

A tracker is a class with four methods (`base.Tracker`). TensorBoard writes files in this process; any other tracker
lives in a process of its own (`child`), to which rank 0 sends messages without ever waiting (`relay`), so that a
library that is slow, hangs or crashes costs training nothing but a count of lost lines. Imports no torch.
"""

from ggcn.tracking.base import TrackedRun, Tracker
from ggcn.tracking.fanout import Trackers

__all__ = ["TrackedRun", "Tracker", "Trackers"]
