"""The comparison at equal compute, with few seconds and small pictures."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import call

from ggcn.errors import UserError
from tools import compare as tool
from tools.comparison import table, training
from tools.comparison.methods import Job
from tools.comparison.results import Results

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite_pytorch")


def compare(*args: object) -> tuple[int, str]:
    ended = call("tools/compare.py", *args)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_method_that_is_none_is_a_mistake(faces: Path, tmp_path: Path) -> None:
    code, output = compare(faces, "--out", tmp_path / "out", "--methods", "ggcn,gnac")
    assert code != 0
    assert "there is no method gnac; choose from ggcn, ggcn_contrastive, coopnets" in output


def test_results_of_another_comparison_are_kept(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"settings": {"seconds": 9}}))
    code, output = compare(faces, "--out", tmp_path, "--methods", "ggcn")
    assert code != 0
    assert "take another --out" in output
    assert json.loads((tmp_path / "results.json").read_text()) == {"settings": {"seconds": 9}}


@pytest.mark.slow
def test_methods_get_equal_time_and_a_second_call_finds_nothing_to_do(faces: Path, tmp_path: Path) -> None:
    args = [faces, "--out", tmp_path, "--methods", "ggcn,dcgan", "--variant", "kl", "ggcn_contrastive"]
    args += ["model.flow.gamma=[0.0]", "--seconds", 2, "--seeds", 2, "--count", 24, "--size", 16]
    args = [*args, "--real", 40]
    code, output = compare(*args)
    assert code == 0, output
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result["rows"]) == {f"{name}-{seed}" for name in ("ggcn", "dcgan", "kl") for seed in (0, 1)}
    for row in result["rows"].values():
        assert row["steps"] * result["costs"][row["method"]] == pytest.approx(2, rel=0.2)
    assert (tmp_path / "pictures.png").is_file()
    code, output = compare(*args)
    assert code == 0, output
    assert "steps in" not in output
    assert json.loads((tmp_path / "results.json").read_text()) == result


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--seeds", "0"], "must be above 0"),
        (["--parallel", "0"], "must be above 0"),
        (["--seconds", "nan"], "must be above 0"),
        (["--methods", ""], "say at least one"),
    ],
)
def test_flags_that_leave_nothing_to_compare_are_refused(args: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tool.check(tool.parser().parse_args(["shards", "--out", "out", *args]))
    tool.check(tool.parser().parse_args(["shards", "--out", "out"]))


def results(tmp_path: Path, rows: dict[str, dict]) -> Results:
    """Of a comparison whose images were not read."""
    result = Results.__new__(Results)
    result.path, result.rows, result.costs = tmp_path / "results.json", rows, {"ggcn": 0.1}
    result.kinds = {"ggcn": ["ggcn"], "fitted-start": ["fitted-start"]}
    result.args = tool.parser().parse_args(["shards", "--out", "out", "--seconds", "100"])
    return result


def test_a_run_counts_as_done_by_its_method_and_seed(tmp_path: Path) -> None:
    row = {"method": "flow-matching heun-25", "run": "flow-matching-0"}
    done = results(tmp_path, {"flow-matching heun-25-0": row})
    assert done.has("flow-matching", 0)
    assert not done.has("flow-matching", 1)
    assert not done.has("ggcn", 0)


def test_the_fitted_start_is_trained_for_the_one_step_that_fits_it(tmp_path: Path) -> None:
    done = results(tmp_path, {})
    assert done.steps("fitted-start") == 1
    assert done.steps("ggcn") == 1000


def test_a_method_of_which_a_run_diverged_says_so_in_the_table() -> None:
    copies = {"copies": 0.0, "nearer_than_reference": 0.4}
    memory = {"features": copies, "pixels": {**copies, "copies": 0.01}}
    well = {"fid": 9.0, "kid": 0.01, "precision": 0.5, "recall": 0.4, "coverage": 0.6, "memorization": memory}
    assert table.line("a", [well, {**well, "fid": 11.0}], "7 | 100") == (
        "| a | 7 | 100 | 10.0 ± 1.4 | 10.0 ± 0.0 | 0.50 ± 0.00 | 0.40 ± 0.00 | 0.60 ± 0.00 | 0.010 | 0.40 | 9.0, 11.0 |"
    )
    assert "diverged, 1 of 2" in table.line("a", [well, {"fid": float("inf")}], "7 | 100")


def job(tmp_path: Path, script: str) -> Job:
    """A training that runs `script` in Python."""

    class Script(Job):
        def command(self) -> list[str]:
            return [sys.executable, "-c", script]

    return Script("x", "dcgan", (), [], tmp_path, tmp_path / "x-0", 1, 0, 1, 16)


def test_only_a_training_that_diverged_is_a_result(tmp_path: Path) -> None:
    with pytest.raises(training.DivergedError):
        training.train(job(tmp_path, "raise SystemExit('error: training diverged at step 3 (loss)')"))
    with pytest.raises(UserError, match="the same command goes on"):
        training.train(job(tmp_path, "raise SystemExit('error: the disk is full')"))
    with pytest.raises(UserError, match="the same command goes on"):
        training.train(job(tmp_path, "import os; os.kill(os.getpid(), 9)"))


@pytest.mark.parametrize("text", ["ggcn", "ggcn=", "ggcn=-1", "ggcn=nan", "ggcn=inf"])
def test_a_cost_that_is_no_time_is_a_mistake(text: str) -> None:
    with pytest.raises(UserError, match="NAME=SECONDS"):
        tool.known_cost(text)


def test_a_rivals_changed_settings_become_its_flags(tmp_path: Path) -> None:
    rival = Job("x", "flow-matching", ("lr=0.001",), [], tmp_path, tmp_path / "x-0", 9, 2, 12, 16)
    words = rival.command()
    assert words[words.index("--lr") + 1] == "0.001"
    assert words[words.index("--steps") + 1] == "9"


class Interrupted:
    """Results in whose first evaluation the user presses Ctrl-C."""

    def add(self, job: Job, spent: float) -> None:
        raise KeyboardInterrupt


def test_what_was_not_begun_is_not_trained_after_an_interrupt(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"open({str(begun)!r}, 'a').write('x')"
    with pytest.raises(KeyboardInterrupt):
        tool.run_all([job(tmp_path, script) for _ in range(20)], Interrupted(), 1)  # type: ignore[arg-type]
    assert len(begun.read_text()) < 10


def test_a_killed_comparison_takes_its_training_along_and_counts_no_run(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(Path(tool.__file__).parents[1])!r}, {str(Path(__file__).parents[1])!r}]
from tools.comparison import training
from tools.comparison.methods import Job
class Script(Job):
    def command(self):
        script = "import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(90)"
        return [sys.executable, "-c", script]
place = pathlib.Path({str(tmp_path)!r})
training.stop_with_this_process()
training.train(Script("x", "dcgan", (), [], place, place / "x-0", 1, 0, 1, 16))
print("a result")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: mark.exists() and bool(mark.read_text()))
    process.terminate()
    assert b"a result" not in process.communicate(timeout=60)[0]
    wait_for(lambda: not alive(int(mark.read_text())))


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
