"""What status says of runs whose files are old, torn or missing, and of jobs that wait."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import TINY, command, quiet_environment

from ggcn import report
from ggcn.cli import status_text
from ggcn.config.compose import compose
from ggcn.launch import slurm
from ggcn.run import event_log, status
from ggcn.run.directory import RunDir
from ggcn.run.find import find
from ggcn.run.status import QueuedJob


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has a config and nothing else."""
    run = RunDir.of(config := compose([*TINY, "data.shards=x", f"paths.runs={tmp_path}", "run=one"]))
    run.freeze(config)
    return run


def tell(path: Path, *overrides: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command("cluster/status.py", path, *overrides),
        capture_output=True,
        text=True,
        env=quiet_environment() | environment,
        timeout=120,
        check=False,
    )


def squeue(place: Path, *rows: str) -> str:
    """A PATH on which squeue answers with these rows, and no other command of SLURM's is real."""
    place.mkdir(exist_ok=True)
    (place / "answer").write_text("".join(row + "\n" for row in rows))
    (place / "squeue").write_text(f"#!/bin/sh\ncat {place}/answer\n")
    (place / "squeue").chmod(0o755)
    return f"{place}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("PENDING", "Priority", "waiting (PENDING: Priority) as job 12"),
        ("PENDING", "None", "waiting (PENDING) as job 12"),
        ("PENDING", "BeginTime", "waiting (PENDING: BeginTime) as job 12"),
        ("PENDING", "Dependency", "waiting (PENDING: Dependency) as job 12"),
        ("PENDING", "InvalidAccount", "waiting (PENDING: InvalidAccount) as job 12"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "waiting (PENDING: QOSMaxJobsPerUserLimit) as job 12"),
        (
            "PENDING",
            "ReqNodeNotAvail, UnavailableNodes:node[1-2] (a|b)",
            "waiting (PENDING: ReqNodeNotAvail, UnavailableNodes:node[1-2] (a|b)) as job 12",
        ),
        (
            "PENDING",
            "JobHeldUser",
            "waiting (PENDING: JobHeldUser; to be released with `scontrol release 12`) as job 12",
        ),
        (
            "PENDING",
            "JobHeldAdmin",
            "waiting (PENDING: JobHeldAdmin; to be released by an administrator with `scontrol release 12`) as job 12",
        ),
        (
            "PENDING",
            "launch failed requeued held",
            "waiting (PENDING: launch failed requeued held; to be released with `scontrol release 12`) as job 12",
        ),
        (
            "REQUEUE_HOLD",
            "None",
            "waiting (REQUEUE_HOLD; to be released with `scontrol release 12`) as job 12",
        ),
        ("RUNNING", "None", "running (RUNNING) as job 12"),
        ("COMPLETING", "None", "running (COMPLETING) as job 12"),
    ],
)
def test_a_job_that_waits_says_why(run: RunDir, tmp_path: Path, state: str, reason: str, said: str) -> None:
    event_log.add(run, "submit", job="12")
    comment = "a|b, of the user's own"
    path = squeue(tmp_path / "bin", f"12|{state}|{reason}{slurm.SEPARATOR}{comment}", "garbage")
    assert tell(run.path, PATH=path).stdout.splitlines()[1].strip() == said
    (line,) = tell(run.path, PATH=path).stdout.splitlines()[1:2]
    assert said in line
    jobs = {"12": QueuedJob(state, comment, "" if reason == "None" else reason, "12")}
    assert status_text.table([run], jobs).splitlines()[1].endswith(said)


def test_a_launcher_says_why_its_job_waits(run: RunDir, tmp_path: Path, faces: Path) -> None:
    event_log.add(run, "submit", job="12")
    path = squeue(tmp_path / "bin", f"12|PENDING|JobHeldUser{slurm.SEPARATOR}x")
    for name in ("sbatch", "srun"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    overrides = [*TINY, f"data.shards={faces}", f"paths.runs={tmp_path}", "run=one", "-m", "slurm"]
    done = subprocess.run(
        command("cluster/launch.py", *overrides),
        capture_output=True,
        text=True,
        env=quiet_environment() | {"PATH": path},
        check=False,
    )
    assert (
        "is already job 12 (PENDING: JobHeldUser; to be released with `scontrol release 12`)" in done.stdout
    )


def test_when_slurm_does_not_answer_the_files_still_speak(run: RunDir, tmp_path: Path) -> None:
    event_log.add(run, "submit", job="12")
    event_log.add(run, "start", mode="slurm", job="12", world=1, step=0, host="node7", pid=1)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    (tmp_path / "bin/squeue").chmod(0o755)
    done = tell(tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 0
    assert "Unable to contact slurm controller" in done.stderr
    assert "running as job 12, as its files say; SLURM was not asked or did not answer" in done.stdout
    assert (
        "cannot ask SLURM" in tell(run.path, "--cancel", PATH=f"{tmp_path}/bin:{os.environ['PATH']}").stderr
    )


STATES: dict[str, Callable[[dict], dict]] = {
    "as written": lambda event: event,
    "by an older version, outside of jobs": lambda event: _without(event, "mode", "device") | {"job": None},
    "by an older version, in an allocation": lambda event: _without(event, "mode", "device") | {"job": "99"},
}


def _without(event: dict, *names: str) -> dict:
    return {name: value for name, value in event.items() if name not in names}


@pytest.mark.parametrize("how", list(STATES))
def test_a_local_run_in_an_allocation_is_one(
    run: RunDir, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sleeps stands for rank 0."""
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        time.sleep(0.05)
        facts = {"mode": "local", "world": 1, "step": 0, "host": socket.gethostname(), "pid": process.pid}
        event_log.add(run, "start", **facts)
        (event,) = event_log.read(run)
        assert event["job"] is None
        (run.path / event_log.NAME).write_text(json.dumps(STATES[how](event)) + "\n")
        assert tell(run.path).stdout.splitlines()[1].strip() == f"running on {socket.gethostname()}"
        assert f"asked rank 0 (process {process.pid})" in tell(run.path, "--cancel").stdout
        assert process.wait(20) == -15
    assert "killed" in tell(run.path).stdout
    assert tell(run.path, "--follow").returncode == 1


def test_what_a_job_of_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "GGCN_JOB"):
        monkeypatch.delenv(name, raising=False)
    assert event_log.job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert event_log.job() is None
    monkeypatch.setenv("GGCN_JOB", "98")  # inherited: this allocation was asked for inside a job of ours
    assert event_log.job() is None
    monkeypatch.setenv("GGCN_JOB", "99")
    assert event_log.job() == "99"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "97")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert event_log.job() is None
    event_log.adopt_job()
    assert event_log.job() == "97_2"


def test_a_run_of_another_machine_is_not_called_killed(run: RunDir) -> None:
    event_log.add(run, "start", mode="local", world=1, step=0, host="elsewhere", pid=1)
    assert "running on elsewhere, as its files say; only that machine can tell" in tell(run.path).stdout
    refused = tell(run.path, "--cancel")
    assert refused.returncode == 2
    assert "run this command on elsewhere" in refused.stderr
    event_log.add(run, "stop", step=0, reason="SIGTERM")
    assert "stopped: SIGTERM" in tell(run.path).stdout


RUBBISH: dict[str, Callable[[RunDir], object]] = {
    "another version's key": lambda run: _append(run.config, "no_such_key: 1\n"),
    "a list": lambda run: run.config.write_text("[1, 2]"),
    "a word": lambda run: run.config.write_text("hello"),
    "bad YAML": lambda run: run.config.write_text("a: [1,\n  b: }"),
    "wrong types": lambda run: run.config.write_text("lanes: many\ntrain: 3\n"),
    "null": lambda run: run.config.write_text("model:\n  grids: null\ntrain:\n  steps: null\n"),
    "binary": lambda run: run.config.write_bytes(bytes(range(256)) * 9),
    "a folder": lambda run: (run.config.unlink(), run.config.mkdir()),
    "a broken link": lambda run: (run.config.unlink(), run.config.symlink_to("/nowhere/config.yaml")),
    "a link to itself": lambda run: (run.config.unlink(), run.config.symlink_to("config.yaml")),
    "events": lambda run: (run.path / event_log.NAME).write_text(EVENTS),
    "binary events": lambda run: (run.path / event_log.NAME).write_bytes(bytes(range(256)) * 9),
    "a folder of events": lambda run: (run.path / event_log.NAME).mkdir(),
    "beats": lambda run: [
        _append(run.path / f"heartbeats/rank_{n:04d}.json", record) for n, record in enumerate(BEATS)
    ],
    "metrics": lambda run: run.metrics.write_text(METRICS),
    "binary metrics": lambda run: run.metrics.write_bytes(bytes(range(256)) * 9),
    "a folder of metrics": lambda run: run.metrics.mkdir(),
    "checkpoints": lambda run: [
        _append(run.checkpoints / f"step_{n}/COMPLETE", "") for n in ("x", "²", "5", "")
    ],
}
EVENTS = "\n".join(
    [
        *("[1]", '"start"', "{", '{"event": 5}', '{"event": ["start"]}', '{"event": "start"}'),
        *(
            '{"event": "start", "time": NaN, "world": "two", "step": null, "pid": "x", "host": 3, "job": [1]}',
        ),
        *('{"event": "stop"}', '{"event": "end"}', '{"event": "submit"}', '{"event": "submitting"}'),
        *('{"event": "end", "time": "noon", "kind": 3, "reason": null}', '{"event": "start", "time": 1e300}'),
        '{"event": "start", "time": -1e18, "pid": -4, "host": "HOST"}'.replace("HOST", socket.gethostname()),
    ]
)
BEATS = (
    *(
        "[1]",
        "{",
        "null",
        '{"rank": "one"}',
        '{"rank": 0}',
        '{"rank": true}',
        '{"rank": 6, "step": "x", "time": NaN}',
    ),
    *(
        '{"rank": 7, "step": 3.5,"time": null, "own_s": "slow", "step_s": [1], "checkpoint_s": Infinity, "node": null}',
    ),
    *(
        '{"rank": 8, "time": 1, "own_s": 1.0}',
        '{"rank": 9, "time": 99999999999, "own_s": 2.0, "step_s": 0.5}',
    ),
)
METRICS = "\n".join(
    [
        *("[1]", "{", '{"step": 1}', '{"step": NaN, "energy_gap/16": "x"}', '{"step": "3", "health": ["a"]}'),
        *(
            '{"step": 2, "energy_gap/16": null, "health": 5, "reasons": 7, "seconds/step": "fast"}',
            '{"step": true}',
        ),
        *(
            '{"health": "healthy\\nnot"}',
            '{"step": 4, "energy_gap/16": NaN, "seconds/step": NaN}',
            '{"step": 5, "torn',
        ),
    ]
)


CONFIGS = list(RUBBISH)[:10]
"""those that leave no config to read"""


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("what", list(RUBBISH))
def test_one_broken_run_costs_the_others_nothing(run: RunDir, what: str, tmp_path: Path) -> None:
    RUBBISH[what](run)
    config = compose([*TINY, "data.shards=x", f"paths.runs={tmp_path}", "run=two"])
    RunDir.of(config).freeze(config)
    (tmp_path / "notes.txt").write_text("no run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to("/nowhere/at/all")
    runs = find([str(tmp_path)])
    assert [each.path.name for each in runs] == ["one", "two"]
    rows = status_text.table(runs, {}).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["one", "two"]
    assert rows[1].split()[-1] == "new"
    assert "unreadable (" not in rows[0], rows[0]
    result = status.read(run, {})
    assert status_text.report(result).startswith(str(run.path))
    assert bool(result.config_error) == (what in CONFIGS)
    assert str(run.path) in report.write(run, tmp_path / "report.html", {}).read_text()


def test_a_rank_starts_on_the_beats_of_any_version(tmp_path: Path) -> None:
    from ggcn.run.heartbeat import Heartbeat
    from ggcn.run.watchdog import Watchdog

    for record in BEATS:
        (tmp_path / "rank_0000.json").write_text(record)
        Heartbeat(tmp_path, 0, 1, Watchdog(tmp_path / "stacks")).stop()


def test_a_clock_that_is_ahead_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert status_text.ago(1_000_000.0 - 90) == "90 s ago"
    assert status_text.ago(1_000_000.0 + 1) == "0 s ago"
    assert status_text.ago(1_000_000.0 + 600).endswith("by a clock that is 10 min ahead of this machine's")


def test_the_device_is_in_the_status(run: RunDir) -> None:
    here = {"host": socket.gethostname(), "pid": psutil.Process().pid}
    event_log.add(run, "start", mode="local", device="2 x NVIDIA H100", world=2, step=0, **here)
    assert "device     2 x NVIDIA H100" in tell(run.path).stdout
    assert run.heartbeats == run.path / "heartbeats"
