"""What a tracker's failure costs a run, and that a restarted run goes on in the same tracker run."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ggcn.tracking import TrackedRun, Trackers, fanout
from ggcn.tracking.base import public, run_key

CLASSES = '''
import json, os, time

class Recording:
    """Writes all that it is told to RUN/recorded.jsonl."""
    def start(self, run):
        self.path = run.folder + "/recorded.jsonl"
        self.write("start", run.key)
    def write(self, *facts):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\\n")
    def log(self, step, metrics):
        self.write("log", step, metrics)
    def image(self, step, name, path):
        self.write("image", step, name, path.name)
    def finish(self, outcome):
        self.write("finish", outcome)

class Slow(Recording):
    def log(self, step, metrics):
        time.sleep(3600)

class Failing(Recording):
    def log(self, step, metrics):
        if step % 2:
            raise ConnectionError("the server said no")
        super().log(step, metrics)

class NotStarting(Recording):
    def start(self, run):
        raise ConnectionError("there is no server")

class Dying(Recording):
    def log(self, step, metrics):
        os._exit(3)
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    (tmp_path / "my_trackers.py").write_text(CLASSES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    folder = tmp_path / "run"
    folder.mkdir()
    return TrackedRun("faces", str(folder), run_key(folder), "", {"train.steps": 20})


def recorded(run: TrackedRun) -> list[list]:
    return [json.loads(line) for line in (Path(run.folder) / "recorded.jsonl").read_text().splitlines()]


def record(run: TrackedRun, kind: str, steps: range, attempt: int = 0, outcome: str = "stopped") -> Trackers:
    trackers = Trackers([f"my_trackers:{kind}"], run, steps[0] - 1, attempt)
    for step in steps:
        trackers.log(step, {"loss": step / 2})
    trackers.finish(outcome)
    trackers.wait()
    return trackers


def test_a_restarted_run_goes_on_in_the_same_tracker_run(run: TrackedRun) -> None:
    record(run, "Recording", range(1, 6))
    trackers = Trackers(["my_trackers:Recording"], run, 3)  # the last checkpoint was that of step 3
    for step in range(4, 8):
        trackers.log(step, {"loss": step / 2})
        trackers.log(step, {"fid": 9.0}, "evaluation")
    trackers.image(7, "samples", Path("step_7.png"))
    trackers.finish("finished")
    trackers.wait()
    facts = recorded(run)
    assert [fact for fact in facts if fact[0] in ("start", "finish")] == [
        ["start", run.key],
        ["finish", "stopped"],
        ["start", run.key],
        ["finish", "finished"],
    ]
    losses = [fact[1] for fact in facts if fact[0] == "log" and "loss" in fact[2]]
    assert losses == [1, 2, 3, 4, 5, 6, 7]
    assert [fact[1] for fact in facts if fact[0] == "log" and "fid" in fact[2]] == [4, 5, 6, 7]
    assert ["image", 7, "samples", "step_7.png"] in facts
    assert trackers.lost() == {}
    assert run_key(Path(run.folder)) == run.key


def test_steps_after_a_roll_back_are_recorded_again(run: TrackedRun) -> None:
    record(run, "Recording", range(1, 6))
    record(run, "Recording", range(3, 5), attempt=1)
    assert [fact[1] for fact in recorded(run) if fact[0] == "log"] == [1, 2, 3, 4, 5, 3, 4]


def test_a_slow_tracker_never_waits_and_its_losses_are_counted(
    run: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fanout, "WAIT_S", 0.5)
    trackers = Trackers(["my_trackers:Slow"], run, 0)
    metrics = {f"some_metric/{index}": 0.5 for index in range(10)}
    longest = 0.0
    for step in range(1, 13_000):
        began = time.thread_time()  # what the call itself takes: other processes may have the core meanwhile
        trackers.log(step, metrics)
        longest = max(longest, time.thread_time() - began)
    assert longest < 0.1
    assert trackers.lost()["tracker_lost/my_trackers:Slow"] > 0
    began = time.monotonic()
    trackers.finish("stopped")
    trackers.wait()
    assert time.monotonic() - began < 10
    assert "loses records (too slow); training goes on" in caplog.text
    assert "lost 12999 of 12999 records" in caplog.text
    trackers.processes[0].process.kill()  # it would end by itself after two minutes


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("Failing", "ConnectionError: the server said no"),
        ("NotStarting", "ConnectionError: there is no server"),
        ("Dying", "too slow"),
        ("Missing", "has no attribute 'Missing'"),
    ],
)
def test_a_failing_tracker_costs_its_records_and_a_warning(
    run: TrackedRun, kind: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        record(run, kind, range(1, 11))
    (sentence,) = [line for line in caplog.messages if " of 10 records" in line]
    assert sentence.startswith(
        f"tracker my_trackers:{kind} lost {5 if kind == 'Failing' else 10} of 10 records"
    )
    assert error.replace("too slow", "ended by itself") in sentence
    if kind == "Failing":
        assert [fact[1] for fact in recorded(run) if fact[0] == "log"] == [2, 4, 6, 8, 10]


def test_a_killed_run_is_failed_in_its_tracker(run: TrackedRun, tmp_path: Path) -> None:
    program = (
        "import time\nfrom ggcn.tracking import TrackedRun, Trackers\n"
        f"trackers = Trackers(['my_trackers:Recording'], TrackedRun('x', {run.folder!r}, 'k', '', {{}}), 0)\n"
        "for step in range(1, 4): trackers.log(step, {'loss': 1.0})\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    path = Path(run.folder) / "recorded.jsonl"
    while not path.exists() or "finish" not in path.read_text():
        assert time.monotonic() < end, "the tracker does not notice"
        time.sleep(0.05)
    assert [fact[0] for fact in recorded(run)] == ["start", "log", "log", "log", "finish"]
    assert recorded(run)[-1] == ["finish", "failed"]


def test_no_credential_of_a_config_leaves_the_machine() -> None:
    flat = {
        "data.shards": "s3://key:secret@host/faces?token=abc",
        "data.mixture": {"pipe:curl -u me:secret https://host/x": 1.0},
        "cluster.setup": ["export HF_TOKEN=secret"],
        "train.steps": 5,
        "model.sigma": float("inf"),
    }
    shown = public(flat)
    assert "secret" not in str(shown)
    assert "abc" not in str(shown)
    assert shown["train.steps"] == 5
