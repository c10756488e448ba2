"""Expected goodput: limits that are known, the closed form against the simulation, and a measured run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import call

from ggcn.run.goodput import NAME
from tools.simulation.closed_form import best, daly_s, expected, goodput, young_s
from tools.simulation.job import Job, measured, slowest
from tools.simulation.simulate import simulate

JOB = Job(nodes=64, step_s=0.4, save_s=20.0, start_s=120.0, queue_s=900.0)


def test_a_job_that_never_fails_only_pays_for_saving() -> None:
    job = replace(JOB, node_mtbf_h=1e15)
    assert goodput(job, 50) == pytest.approx(20 / 40)
    assert simulate(replace(job, node_mtbf_h=float("inf")), 50)["step"] == pytest.approx(20 / 40)


def test_the_best_interval_is_youngs_where_failures_are_rare() -> None:
    assert best(JOB).every * JOB.step_s == pytest.approx(young_s(JOB), rel=0.03)
    assert daly_s(JOB) == pytest.approx(young_s(JOB), rel=0.03)
    often = replace(JOB, nodes=4096, save_s=120.0)  # a failure every 92 minutes
    assert abs(best(often).every * often.step_s - daly_s(often)) < 0.02 * daly_s(often)
    assert young_s(often) > 1.05 * daly_s(often)


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, nodes=4096, detect_s=540),
        replace(JOB, preemptions_per_day=6.0),
        replace(JOB, nodes=2048, preemptions_per_day=24.0),
    ],
)
def test_the_closed_form_agrees_with_the_simulation(job: Job) -> None:
    for every in (200, best(job).every, 5000):
        shares = simulate(job, every)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["step"] == pytest.approx(goodput(job, every), rel=0.02)


def test_no_other_interval_is_better_than_the_best() -> None:
    for nodes in (1, 64, 4096):
        job = replace(JOB, nodes=nodes)
        found = best(job)
        assert all(
            goodput(job, round(found.every * factor)) <= found.goodput for factor in (0.5, 0.9, 1.1, 2)
        )


def test_waiting_for_the_slowest_rank_grows_with_the_ranks() -> None:
    assert slowest(1, 0.1) == pytest.approx(1.005, abs=0.001)  # exp(s^2 / 2)
    assert 1.2 < slowest(64, 0.1) < slowest(4096, 0.1) < 1.5
    job = replace(JOB, jitter=0.1)
    assert expected(job, 500).efficiency < expected(JOB, 500).efficiency


def test_a_runs_own_books_give_its_times(tmp_path: Path) -> None:
    seconds = {"start": 20.0, "compile": 5.0, "step": 80.0, "checkpoint": 8.0}
    first = {
        "segment": "a",
        "begin": 0.0,
        "end": 115.0,
        "first": 0,
        "step": 40,
        "seconds": seconds,
        "saves": 4,
    }
    second = {**first, "segment": "b", "begin": 145.0, "end": 260.0, "first": 40, "step": 80}
    (tmp_path / NAME).write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    job = measured(tmp_path, Job())
    assert (job.step_s, job.save_s, job.start_s, job.queue_s) == (2.0, 2.0, 25.0, 30.0)
    shown = call("tools/simulate.py", "--run", tmp_path, "--nodes", 4, "--start", 30)
    assert shown.returncode == 0, shown.stderr
    assert "step 2, save 2, start 30, waiting 30" in shown.stdout
    assert shown.stdout.count("\n| ") == 12  # head, rule and ten sizes
    refused = call("tools/simulate.py", "--run", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "has no steps and saves on record" in refused.stderr
