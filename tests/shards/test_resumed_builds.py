"""Builds that were stopped, and folders with missing files, are completed by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import shard_files as shards
from builds import TOOL, draw, make, noise, start, tree

from ggcn.data import index_file, manifest, manifest_file


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that take a while."""
    folder = tmp_path_factory.mktemp("slow")
    for seed in range(144):  # long enough that a signal arrives in the middle on a busy machine
        draw(folder / f"{seed}.bmp", noise(seed, 420, 420))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build of `slow` gives that nobody stops."""
    out = tmp_path_factory.mktemp("uninterrupted")
    make(slow, out, "--size", 400, "--shard-samples", 4)
    return tree(out)


def wait_for_shards(out: Path, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Waits until some shards are done, not all; returns the build's processes."""
    deadline = time.monotonic() + 60
    while len(list(out.glob("0*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return psutil.Process(process.pid).children(recursive=True)


def times(out: Path) -> dict[str, int]:
    """When each finished shard's tar was written."""
    return {path.stem: path.with_suffix(".tar").stat().st_mtime_ns for path in out.glob("0*.json")}


def take_interrupts() -> None:
    """In the child: a shell that started the tests in the background has it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_build_continues_where_it_was(
    slow: Path, uninterrupted: dict[str, bytes], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = (slow, out, "--size", 400, "--shard-samples", 4, "--workers", 2)
    process = start(*command, start_new_session=True, preexec_fn=take_interrupts)
    helpers = wait_for_shards(out, process)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C does: main process and workers alike
    else:
        process.kill()
    _, errors = process.communicate(timeout=30)
    assert not psutil.wait_procs(helpers, timeout=10)[1], "workers were left behind"
    assert not (out / manifest.NAME).exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not list(out.glob(".tmp-*"))

    done = times(out)
    assert 2 <= len(done) < 36
    (out / ".tmp-1-000009.tar").write_bytes(b"half a shard")
    make(slow, out, "--size", 400, "--shard-samples", 4)
    assert tree(out) == uninterrupted
    assert {name: value for name, value in times(out).items() if name in done} == done


def test_a_stopped_build_of_several_sizes_continues_where_it_was(slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(slow, out, "--size", "50,200", "--shard-samples", 4, "--workers", 2)
    helpers = wait_for_shards(out / "50", process)
    process.kill()
    process.communicate(timeout=30)
    assert not psutil.wait_procs(helpers, timeout=10)[1], "workers were left behind"
    done = {size: times(out / size) for size in ("50", "200")}
    make(slow, out, "--size", "50,200", "--shard-samples", 4)
    for size in ("50", "200"):
        assert len(done[size]) < 36
        assert {name: value for name, value in times(out / size).items() if name in done[size]} == done[size]
        make(slow, tmp_path / size, "--size", size, "--shard-samples", 4)
        assert tree(out / size) == tree(tmp_path / size)


def test_a_killed_worker_is_reported_and_loses_no_shard(
    slow: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(slow, tmp_path, "--size", 400, "--shard-samples", 4, "--workers", 2)
    for helper in wait_for_shards(tmp_path, process):
        helper.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "fewer --workers" in errors
    assert "Traceback" not in errors
    done = times(tmp_path)
    make(slow, tmp_path, "--size", 400, "--shard-samples", 4)
    assert tree(tmp_path) == uninterrupted
    assert {name: value for name, value in times(tmp_path).items() if name in done} == done


def test_a_full_disk_is_reported_and_loses_no_shard(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(image_folder, tmp_path / "expected", "--size", 32, "--shard-samples", 8)
    draw(image_folder / "large.png", noise(99))
    limit = f"ulimit -f 20; exec {sys.executable} {TOOL} {image_folder} {out} --size 32 --shard-samples 8"
    result = subprocess.run(["bash", "-c", limit], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "File too large" in line
    assert "Traceback" not in result.stderr
    assert not (out / manifest.NAME).exists()
    make(image_folder, out, "--size", 32, "--shard-samples", 8)
    assert manifest_file.load(out).samples == 41


def test_a_finished_build_is_not_changed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(image_folder, tmp_path / "out", "--size", 16)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert make(image_folder, tmp_path / "out", "--size", 16) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "damage", ["missing", "short", "no manifest", "no index", "short index", "first version"]
)
def test_only_missing_files_are_built_again(image_folder: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    make(image_folder, out, "--size", 16)
    expected, before = tree(out), times(out)
    if damage == "missing":
        (out / "000001.tar").unlink()
    elif damage == "short":
        os.truncate(out / "000001.tar", 700)
    elif damage == "first version":
        shards.first_version(out)
    elif damage == "short index":
        os.truncate(out / index_file.INDEX, 12)
    else:
        (out / (manifest.NAME if damage == "no manifest" else index_file.INDEX)).unlink()
    make(image_folder, out, "--size", 16)
    assert tree(out) == expected
    changed = {name for name, value in times(out).items() if before[name] != value}
    assert changed == ({"000001"} if damage in ("missing", "short") else set())
