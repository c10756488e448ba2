"""The times and rates that decide a run's goodput, given or measured on a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.special import ndtri

from ggcn.errors import UserError
from ggcn.run.goodput import Segment, read

POINTS = 4000
"""quantiles of which the mean of a maximum is taken"""


@dataclass(frozen=True)
class Job:
    """A run of many steps on several nodes; seconds where nothing else is said."""

    nodes: int = 1
    step_s: float = 1.0
    """a step of one rank, its median"""
    save_s: float = 5.0
    """what a checkpoint adds to the time of a step"""
    start_s: float = 60.0
    """from the start of the processes to the first step, the first step's excess included"""
    queue_s: float = 300.0
    """from the end of one attempt to the start of the next"""
    detect_s: float = 0.0
    """from a failure to the end of the attempt: up to cluster.hang_s for a hang, nothing for a crash"""
    node_mtbf_h: float = 6300.0
    """hours between two failures of one node"""
    preemptions_per_day: float = 0.0
    """stops with a notice that is long enough to save"""
    jitter: float = 0.0
    """standard deviation of the logarithm of one rank's step time: all ranks wait for the slowest one of each step"""
    ranks_per_node: int = 8

    @property
    def failure_rate(self) -> float:
        """Failures of the job per second."""
        return self.nodes / (3600 * self.node_mtbf_h)

    @property
    def preemption_rate(self) -> float:
        """Preemptions per second of running."""
        return self.preemptions_per_day / 86400

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def sync_step_s(self) -> float:
        """The expected time of a step: that of its slowest rank."""
        return self.step_s * slowest(self.ranks, self.jitter)

    def on(self, gpus: int) -> "Job":
        """The same job on so many GPUs, one rank each, in whole nodes."""
        return replace(self, nodes=max(1, gpus // self.ranks_per_node))


@cache
def slowest(ranks: int, jitter: float) -> float:
    """The mean of the largest of `ranks` log-normal factors with median 1, by the quantiles of a maximum."""
    if jitter == 0:
        return 1.0
    quantiles = ((np.arange(POINTS) + 0.5) / POINTS) ** (1 / ranks)
    return float(np.exp(jitter * ndtri(quantiles)).mean())


def measured(folder: Path, job: Job) -> Job:
    """`job` with the times of the run in `folder` from its books. Raises UserError where it has too few."""
    segments = read(folder)
    steps = sum(segment.step - segment.first for segment in segments)
    saves = sum(segment.saves for segment in segments)
    if not steps or not saves:
        raise UserError(
            f"{folder} has no steps and saves on record; let it reach a checkpoint, or give --step, --save"
        )
    starts = [_seconds(segment, "start") + _seconds(segment, "compile") for segment in segments]
    gaps = [max(b.begin - a.end, 0.0) for a, b in pairwise(segments)]
    return replace(
        job,
        step_s=_total(segments, "step", "samples", "evaluation") / steps,
        save_s=_total(segments, "checkpoint") / saves,
        start_s=fmean(starts),
        queue_s=fmean(gaps) if gaps else job.queue_s,
    )


def _seconds(segment: Segment, *kinds: str) -> float:
    return sum(segment.seconds.get(kind, 0.0) for kind in kinds)


def _total(segments: Sequence[Segment], *kinds: str) -> float:
    return sum(_seconds(segment, *kinds) for segment in segments)
