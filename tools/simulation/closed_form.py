"""Goodput and the best interval between checkpoints in closed form.

Failures come at a constant rate L while the job runs, also while it starts and saves; each loses what was done since
the last checkpoint. With intervals of w seconds of steps and c of saving, a start of s, and q until the next one
begins, the expected wall time of an interval, from the state "ready to compute", is

    E = (exp(L (w + c)) - 1) (1 / L + D),     D = q exp(L s) + (exp(L s) - 1) / L

D: from a failure to being ready again, where a start may fail too (Daly 2006, with a start that can be interrupted).
A preemption with notice saves first, so it costs c + q + D's start but no step; it comes at a rate P of running time.
"""

from dataclasses import dataclass
from math import exp, expm1, log, sqrt

from scipy.optimize import minimize_scalar

from tools.simulation.job import Job

TINY = 1e-300
"""a failure rate that stands for none"""


@dataclass(frozen=True)
class Expected:
    """What is expected of a job at one interval between checkpoints."""

    every: int
    """steps between checkpoints"""
    goodput: float
    """share of wall time in steps that lasted"""
    efficiency: float
    """goodput without what ranks wait for the slowest of them: the share that ideal hardware would need"""


def goodput(job: Job, every: int) -> float:
    """The share of wall time in steps that last, with `every` steps between two checkpoints."""
    rate, work, save = max(job.failure_rate, TINY), every * job.sync_step_s, job.save_s
    wait = job.queue_s + job.detect_s
    again = wait * exp(rate * job.start_s) + expm1(rate * job.start_s) / rate
    attempts = expm1(rate * (work + save))
    running = attempts / rate
    preempted = save + job.queue_s + job.start_s
    return work / (running + attempts * again + job.preemption_rate * running * preempted)


def expected(job: Job, every: int) -> Expected:
    """Goodput and efficiency at an interval."""
    share = goodput(job, every)
    return Expected(every, share, share * job.step_s / job.sync_step_s)


def best(job: Job) -> Expected:
    """The interval with the best goodput: no formula is needed, since it has one maximum in log(interval)."""
    longest = max(100 * daly_s(job) / job.sync_step_s, 10)
    found = minimize_scalar(
        lambda steps: -goodput(job, max(round(exp(steps)), 1)), bounds=(0, log(longest)), method="bounded"
    )
    around = max(round(exp(found.x)), 1)
    candidates = range(max(round(0.9 * around), 1), round(1.1 * around) + 2, max(around // 100, 1))
    return expected(job, max(candidates, key=lambda every: goodput(job, every)))


def young_s(job: Job) -> float:
    """Young's interval, seconds of steps between two checkpoints: sqrt(2 c / L)."""
    return sqrt(2 * job.save_s / job.failure_rate)


def daly_s(job: Job) -> float:
    """Daly's interval, of higher order: near Young's where saving is much shorter than the time between failures."""
    mean, save = 1 / job.failure_rate, job.save_s
    if save >= 2 * mean:
        return mean
    ratio = save / (2 * mean)
    return sqrt(2 * save * mean) * (1 + sqrt(ratio) / 3 + ratio / 9) - save
