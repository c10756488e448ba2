"""The attempts of a run in its report."""

from pathlib import Path

import pytest
from run_files import Page, begun

from ggcn import report
from ggcn.report.attempts import timeline
from ggcn.run import event_log


def test_attempts_end_as_the_events_say() -> None:
    def event(kind: str, at: float, **facts: object) -> dict:
        return {"event": kind, "time": at, "job": None, "step": 0, "world": 1, **facts}

    events = [event("start", 10), event("stop", 20, reason="SIGTERM"), event("start", 30), event("start", 50)]
    ends = [(each.begin, each.end, each.outcome) for each in timeline(events, 99, running=True)]
    assert ends == [(10, 20, "stopped"), (30, 50, "killed"), (50, 99, "running")]
    assert timeline(events, 99, running=False, heartbeat=70)[-1].end == 70
    done = [*events, event("finish", 80)]
    assert timeline(done, 99, running=False)[-1].outcome == "finished"
    skewed = [event("start", 30), event("stop", 29, reason="SIGTERM"), event("start", 28), event("start", 27)]
    ends = [(each.begin, each.end, each.outcome) for each in timeline(skewed, 26, running=True)]
    assert ends == [(30, 30, "stopped"), (28, 28, "killed"), (27, 27, "running")]


def test_a_job_that_waits_has_no_attempt_yet(tmp_path: Path) -> None:
    run = begun(tmp_path)
    event_log.add(run, "submitting", array="1", index=0)
    event_log.add(run, "submit", nodes=1)
    assert timeline(event_log.read(run), 99, running=False) == []
    assert "submit" in Page(report.write(run).read_text()).text


def test_inside_its_own_job_the_run_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("GGCN_JOB", "77")
    event_log.add(run, "start", mode="slurm", world=1, step=0, host="elsewhere", pid=1)
    assert report.read(run, {}).running
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not report.read(run, {}).running  # SLURM was asked and has no such job
