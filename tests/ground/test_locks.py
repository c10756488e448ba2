"""Locks keep processes apart on file systems with and without locks, and are released when their process ends."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ROOT, quiet_environment

from ggcn import locks
from ggcn.errors import UserError
from ggcn.run.directory import RunDir

HOLDER = """
import fcntl, os, sys, time
from pathlib import Path
from ggcn import locks

def unsupported(*_):
    raise OSError(number, os.strerror(number))

path, number, host, fork = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if number:
    fcntl.flock = fcntl.lockf = unsupported
if host:
    here = locks._machine()
    locks._machine = lambda: here | {"host": host}
locks.REFRESH_S = 0.05
with locks.exclusive_lock(path):
    if not fork or os.fork():
        print("held", flush=True)
    time.sleep(120)
"""

Hold = Callable[..., subprocess.Popen]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts a process that holds a lock, as one of another host if it is named."""
    running = []

    def start(path: Path, number: int = 0, host: str = "", fork: str = "") -> subprocess.Popen:
        args = [sys.executable, "-c", HOLDER, str(path), str(number), host, fork]
        environment = quiet_environment() | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            args, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes locks fail with error `number` in this process, as on a file system without them; 0: they work."""

    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.delenv(locks.WARNED, raising=False)
    for name in ("flock", "lockf") if number else ():
        monkeypatch.setattr(f"fcntl.{name}", unsupported)


@pytest.mark.parametrize(
    "number", [0, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EIO, errno.EPERM]
)
def test_a_lock_keeps_others_out_until_its_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold, number: int
) -> None:
    path = tmp_path / ".lock"
    without_locks(monkeypatch, number)
    with locks.exclusive_lock(path):
        pass
    holder = hold(path, number, fork="and leave a child behind")
    with pytest.raises(locks.LockTaken), locks.exclusive_lock(path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    monkeypatch.setattr(locks, "STALE_S", 1e6)  # nobody need wait for a process that is seen to be dead
    with locks.exclusive_lock(path, wait=True):
        pass
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]


def test_a_lock_file_of_another_machine_counts_while_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    path = tmp_path / ".lock"
    holder = hold(path, errno.ENOLCK, host="elsewhere")
    monkeypatch.setattr(locks, "STALE_S", 5.0)
    with pytest.raises(locks.LockTaken), locks.exclusive_lock(path):  # though this machine has locks
        pass
    os.kill(holder.pid, signal.SIGSTOP)
    with locks.exclusive_lock(path):
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(60) == -signal.SIGTERM  # it lost the lock, so it must not go on


def test_a_lock_file_that_came_with_a_copy_of_its_folder_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    (tmp_path / "one").mkdir()
    hold(tmp_path / "one/.lock", errno.ENOLCK)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    with locks.exclusive_lock(tmp_path / "other/.lock"):
        pass
    with pytest.raises(locks.LockTaken), locks.exclusive_lock(tmp_path / "one/.lock"):
        pass


def test_what_is_unlike_a_lock_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock.held").write_bytes(b"\x00\xff" * 100)
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    with locks.exclusive_lock(tmp_path / ".lock"):
        pass
    assert not (tmp_path / ".lock.held").exists()


def test_a_folder_without_locks_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_locks(monkeypatch, errno.ENOSYS)
    for name in ("one", "other", "one"):
        with locks.exclusive_lock(tmp_path / name):
            pass
    (line,) = caplog.messages
    assert str(tmp_path) in line
    assert "Function not implemented" in line
    assert str(tmp_path) in os.environ[locks.WARNED]  # for child processes


@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_two_processes_never_hold_a_lock_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each adds 1 to a number in a file, which is lost where two read it before either writes."""
    without_locks(monkeypatch, number)
    total, children = tmp_path / "total", []
    total.write_text("0")
    for _ in range(3):
        if (pid := os.fork()) == 0:
            for _ in range(5):
                with locks.exclusive_lock(tmp_path / ".lock", wait=True):
                    value = int(total.read_text())
                    time.sleep(0.002)
                    total.write_text(str(value + 1))
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert total.read_text() == "15"


@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_a_run_is_one_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold, number: int
) -> None:
    without_locks(monkeypatch, number)
    run = RunDir(tmp_path / "one")
    run.path.mkdir()
    hold(run.path / ".lock-launcher", number)
    with pytest.raises(UserError, match="one is being trained by another process"), run.exclusive("launcher"):
        pass
    with run.exclusive("rank"):
        pass


def test_a_run_directory_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "mkdir", full)
    run, sentence = RunDir(tmp_path / "one"), r"one cannot be written \(Disk quota exceeded\)"
    with pytest.raises(UserError, match=sentence), run.exclusive("rank"):
        pass
