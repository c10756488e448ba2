"""Work that takes longer than a step may: healthy work goes on to its end, a hang in it is found all the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, command, quiet_environment

QUICK = ["cluster.hang_s=5", "cluster.timeout_s=6", "engine=plain", "engine.precision=fp32"]


def launch(overrides: list[str], **environment: str) -> subprocess.CompletedProcess:
    """A run of two ranks whose rank 0 is slow, as tests/e2e/launch_with_slow_rank.py describes."""
    return subprocess.run(
        command("tests/e2e/launch_with_slow_rank.py", "-m", "local", *TINY, *QUICK, *overrides),
        capture_output=True,
        text=True,
        env=quiet_environment() | {"SECONDS": "25", "OMP_NUM_THREADS": "1"} | environment,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("work", ["checkpoint", "samples", "fit", "evaluation"])
def test_healthy_work_of_rank_0_may_take_longer_than_any_limit(
    work: str, faces: Path, tmp_path: Path
) -> None:
    """25 s, reported every half second: longer than hang_s, than the silence allowed, and than a collective waits."""
    overrides = [
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        "run=x",
        "train.steps=3",
        "checkpoint.every=3",
    ]
    if work == "evaluation":
        pytest.importorskip("efficientnet_lite_pytorch")
        overrides += [
            "evaluation.every=3",
            "evaluation.count=12",
            "evaluation.real=12",
            f"evaluation.cache={tmp_path}/c",
        ]
    done = launch([*overrides, "log.samples_every=2"], SLOW=work)
    assert done.returncode == 0, done.stderr
    assert not any(path.stat().st_size for path in (tmp_path / "x/logs").glob("*.stacks"))


@pytest.mark.slow
@pytest.mark.parametrize("work", ["checkpoint", "samples"])
def test_a_hang_in_long_work_is_found_with_the_stacks_of_all_ranks(
    work: str, faces: Path, tmp_path: Path
) -> None:
    overrides = [
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        "run=x",
        "train.steps=9",
        "log.samples_every=2",
    ]
    done = launch([*overrides, "cluster.timeout_s=60"], HANG=work)
    assert done.returncode == 2
    assert "cluster.hang_s" in done.stderr.splitlines()[-1]
    stacks = [(tmp_path / f"x/logs/rank_000{rank}.stacks").read_text() for rank in (0, 1)]
    assert "in slow" in stacks[0]
    assert "in barrier" in stacks[1]


def watched(text: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs Python that has a `heartbeat` and a `watchdog` with hang_s=0.2, past the first step; other work may report
    nothing for 0.8 s."""
    script = (
        "import time; from pathlib import Path\n"
        "from ggcn import progress\n"
        "from ggcn.run.heartbeat import Heartbeat\n"
        "from ggcn.run.watchdog import Watchdog\n"
        f"watchdog = Watchdog(Path('{folder}/stacks'), hang_s=0.2, startup_s=0.2)\n"
        f"heartbeat = Heartbeat(Path('{folder}'), 0, 1, watchdog)\n"
        "heartbeat.step_done(1, 0.0)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script + text],
        capture_output=True,
        check=False,
        env=quiet_environment(),
        cwd=ROOT,
    )


WORK = (
    "with heartbeat.between(1, 'checkpoint'):\n    for _ in range(30):\n        time.sleep(0.1)\n        {}\n"
)


@pytest.mark.parametrize("sign", ["progress.report()", "watchdog.remote_progress()"])
def test_signs_of_progress_keep_long_work_alive(sign: str, tmp_path: Path) -> None:
    assert watched(WORK.format(sign), tmp_path).returncode == 0
    assert (tmp_path / "stacks").read_text() == ""


@pytest.mark.parametrize(
    "text",
    [
        WORK.format("pass"),  # it is silent
        "for _ in range(30):\n    time.sleep(0.1)\n    progress.report()\n",  # a step ends by itself or hangs
        WORK.format("progress.report()") + "time.sleep(3)\n",  # it is over
    ],
)
def test_silence_in_long_work_is_a_hang_and_reports_in_a_step_are_none(text: str, tmp_path: Path) -> None:
    assert watched(text, tmp_path).returncode < 0
    assert "most recent call first" in (tmp_path / "stacks").read_text()


def test_a_forked_loader_worker_does_not_arm_the_watchdog(tmp_path: Path) -> None:
    """It would end by SIGALRM once it reads quietly."""
    text = (
        "import os\n"
        "watchdog.silence_s = 60\n"
        "watchdog.expect_progress()\n"
        "if (pid := os.fork()) == 0:\n"
        "    watchdog.silence_s, watchdog._silence = 0.2, 0.2\n"
        "    time.sleep(0.1); progress.report(); time.sleep(1); os._exit(0)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert watched(text, tmp_path).returncode == 0
