"""A job simulated attempt by attempt, to check the closed form and to tell apart where its time goes."""

import numpy as np

from tools.simulation.job import Job

KINDS = ("step", "lost", "save", "start", "waiting")


def simulate(job: Job, every: int, attempts: int = 200_000, seed: int = 0) -> dict[str, float]:
    """The share of wall time by KINDS, over so many attempts, each ended by a failure or by a preemption with notice.

    A job that neither fails nor is preempted has one attempt without end; then the shares are those of an interval.
    """
    work, save = every * job.sync_step_s, job.save_s
    rate = job.failure_rate + job.preemption_rate
    if rate == 0:
        return dict.fromkeys(KINDS, 0.0) | {"step": work / (work + save), "save": save / (work + save)}
    random = np.random.default_rng(seed)
    end = random.exponential(1 / rate, attempts)
    notice = random.random(attempts) < job.preemption_rate / rate
    running = np.maximum(end - job.start_s, 0.0)
    cycles, rest = np.floor(running / (work + save)), running % (work + save)
    saves_now = notice & (running > 0)
    seconds = {
        "step": cycles * work + np.where(saves_now, np.minimum(rest, work), 0.0),
        "lost": np.where(notice, 0.0, rest),
        "save": cycles * save + np.where(saves_now, save, 0.0),
        "start": np.minimum(end, job.start_s),
        "waiting": job.queue_s + np.where(notice, 0.0, job.detect_s),
    }
    sums = {kind: float(np.sum(values)) for kind, values in seconds.items()}
    total = sum(sums.values())
    return {kind: sums[kind] / total for kind in KINDS}
