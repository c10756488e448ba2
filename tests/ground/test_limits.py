"""Limits of the system: raised where that is possible, else a sentence that names them."""

import errno
import resource
import subprocess
import sys

import pytest
from helpers import ROOT, TINY, command, quiet_environment

from ggcn import limits
from ggcn.errors import UserError, is_transient


def limited(text: str, soft: int, hard: int) -> subprocess.CompletedProcess:
    """Runs Python with so many open files allowed."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$0" -c "$1"', sys.executable, text],
        capture_output=True,
        text=True,
        env=quiet_environment(),
        cwd=ROOT,
        check=False,
    )


def test_the_soft_limit_rises_to_the_hard_one() -> None:
    done = limited(
        "from ggcn import limits; limits.require_open_files(64); print(limits.raise_open_files())", 64, 512
    )
    assert done.stdout.strip() == "512", done.stderr


def test_a_hard_limit_that_is_too_low_is_a_sentence() -> None:
    text = "from ggcn import limits\nfrom ggcn.console import run_cli\nrun_cli(lambda: limits.require_open_files(1000))"
    done = limited(text, 256, 512)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "each of 1000 ranks needs about 2049 open files, and the hard limit is 512" in line


def test_the_launcher_and_its_ranks_take_what_the_hard_limit_gives(faces, tmp_path) -> None:
    args = [
        *TINY,
        "engine=plain",
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        "run=x",
        "train.steps=1",
    ]
    launch = command("cluster/launch.py", "-m", "local", *args)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -Sn 40; exec "$@"', "bash", *launch],
        capture_output=True,
        text=True,
        env=quiet_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        ["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", *launch, "run=y"],
        capture_output=True,
        text=True,
        env=quiet_environment(),
        check=False,
    )
    assert refused.returncode == 2
    assert "the hard limit is 40 (ulimit -Hn)" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "args", "again"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.tar"), "may open no more files", False),
        (RuntimeError("accept: Too many open files"), "may open no more files", False),
        (OSError(errno.ENFILE, "Too many open files in system"), "fs.file-max", True),
        (RuntimeError("socket: Too many open files in system"), "fs.file-max", True),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"), "/dev/shm is full", False),
        (
            RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"),
            "/dev/shm",
            False,
        ),
        (OSError(errno.ENOSPC, "inotify watch limit reached"), "fs.inotify", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/home/a/b"), "quota is used up at /home/a/b", False),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u", True),
        (RuntimeError("can't start new thread"), "ulimit -u", True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out", True),
    ],
)
def test_a_limit_that_was_met_is_named(error: Exception, args: str, again: bool) -> None:
    result = limits.explained(error)
    assert result is not None
    assert args in str(result)
    assert is_transient(result) == again


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), OSError(errno.ENOSPC, "No space left", "/scratch/x"), UserError("said already")],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert limits.explained(error) is None


def test_a_process_that_really_runs_out_of_files_can_tell() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(OSError, match="Too many open files") as raised:
            opened.extend(open("/dev/null") for _ in range(100))  # noqa: SIM115
    finally:
        for file in opened:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "may open no more files" in str(limits.explained(raised.value))
