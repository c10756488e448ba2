"""What commands do when their output goes nowhere, and files that replace others."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, quiet_environment

from ggcn import files

PRINTS = [sys.executable, "-c", "from ggcn.console import run_cli; run_cli(lambda: print('text'))"]
"""a command that prints a line"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_quietly(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = quiet_environment() | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        PRINTS, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_one_sentence(unbuffered: str) -> None:
    environment = quiet_environment() | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            PRINTS, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_a_closed_output_changes_nothing() -> None:
    script = f"{shlex.join(PRINTS)} >&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_refused_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a", Path("/proc/x"), Path(".")):
        with pytest.raises(OSError, match=r".") as error:
            files.write_text(path, "")
        assert error.value.filename == str(path)
        with pytest.raises(OSError, match=r".") as error:
            files.check_writable(path)
        assert error.value.filename == str(path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
