"""Checkpoints when ranks are killed, files are damaged or the disk is full, and what can be done with checkpoints:
inspection, export, sampling."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, call, command, quiet_environment
from kill_ranks import END_S, Killer, last_line

import ggcn
from ggcn.config.compose import load, public
from ggcn.errors import UserError
from ggcn.run import checkpoint
from ggcn.run.save_budget import SaveBudget

PLAIN = ["engine=plain", "log.samples_every=100000"]


@pytest.fixture
def overrides(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run in a directory of its own."""
    return [*TINY, *PLAIN, f"data.shards={faces}", f"paths.runs={tmp_path}"]


def launch(*overrides: object, mode: str = "debug") -> subprocess.CompletedProcess:
    """A run to its end, in one process unless mode is local."""
    return call("cluster/launch.py", "-m", mode, *overrides)


def started(*overrides: object) -> subprocess.Popen:
    """A run in the background."""
    return subprocess.Popen(
        command("cluster/launch.py", "-m", "local", *overrides),
        env=quiet_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def trained(*overrides: object, mode: str = "debug") -> None:
    done = launch(*overrides, mode=mode)
    assert done.returncode == 0, done.stderr


def state(run: Path, step: int) -> dict[str, str]:
    """The sha256 of every file of a checkpoint that holds numbers."""
    facts = checkpoint.meta(run / "checkpoints" / checkpoint.name(step))
    return {path: entry["sha256"] for path, entry in facts["files"].items()}


def saved(run: Path) -> list[str]:
    return [line for line in (run / "logs/rank_0000.log").read_text().splitlines() if "saved step_" in line]


# ---- killed ranks


def _ranks(pid: int) -> list[int]:
    """The ranks a launcher started, in order (multiprocessing's own helper aside)."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in pids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def assert_same_result(root: Path, steps: int) -> None:
    """The run that was killed has the bits and the metrics of the one that was not."""
    assert state(root / "uninterrupted", steps) == state(root / "killed", steps)
    assert [line["step"] for line in _lines(root / "killed")] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_run_survives_killed_ranks(overrides: list[str], tmp_path: Path) -> None:
    often = ["run=killed", "checkpoint.every=3", "checkpoint.keep=3"]
    killer = Killer(tmp_path / "killed", seed=1)
    for _ in range(2):
        process = started(*overrides, *often, "train.steps=100000")
        killer.wait()
        os.kill(killer.random.choice(_ranks(process.pid)), signal.SIGKILL)
        _, errors = process.communicate(timeout=END_S)
        assert process.returncode == 2, errors
        killer.check_checkpoints(every=3)
    steps = last_line(tmp_path / "killed") + 10
    trained(*overrides, *often, f"train.steps={steps}", mode="local")
    trained(*overrides, "run=uninterrupted", f"train.steps={steps}", mode="local")
    assert_same_result(tmp_path, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "engine", "seed", "slow"),
    [
        ("ggcn", "deepspeed", 11, 0),
        ("gcn", "plain", 12, 0),
        ("multigrid", "plain", 13, 0),
        ("gcn", "plain", 14, 0.05),
    ],
)
def test_a_run_survives_many_killed_ranks(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    engine: str,
    seed: int,
    slow: float,
) -> None:
    """`slow`: seconds per file of a checkpoint, so that steps run while it is written."""
    monkeypatch.setenv("SLOW_WRITES", str(slow))
    overrides = [*overrides, f"model={model}", f"engine={engine}", "engine.zero_stage=2"]
    done = call("tests/e2e/kill_ranks.py", 12, seed, *overrides)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"steps lost per kill: {result['lost']}")
    assert len(result["lost"]) == 12
    assert_same_result(tmp_path, result["steps"])


# ---- other worlds


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ggcn", "gcn"])
def test_a_run_moves_from_four_ranks_to_two_to_one_to_four(
    overrides: list[str], tmp_path: Path, model: str
) -> None:
    overrides = [*overrides, f"model={model}", "engine.precision=fp32"]
    trained(*overrides, "run=still", "train.steps=40")
    legs = [(4, "deepspeed", 2), (2, "deepspeed", 1), (1, "plain", 0), (4, "deepspeed", 2)]
    for number, (ranks, engine, stage) in enumerate(legs):
        more = [f"cluster.ranks={ranks}", f"engine={engine}", f"engine.zero_stage={stage}"]
        more.append(f"train.steps={10 * number + 10}")
        trained(*overrides, "run=moving", *more, mode="local")
    for one, two in zip(*(_lines(tmp_path / run) for run in ("still", "moving")), strict=True):
        for name in ("energy_loss", "energy_gradient_norm", "displacement/16"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (one["step"], name)


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---- damaged files


@pytest.fixture(scope="module")
def chains_run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with persistent chains and two checkpoints, at steps 5 and 10."""
    root = tmp_path_factory.mktemp("damage")
    trained(
        *TINY,
        *PLAIN,
        f"data.shards={faces}",
        f"paths.runs={root}",
        "run=chains",
        "model=gcn",
        "model.grids=[16]",
        "model.replay_buffer.cold_start_factor=2",
        "train.steps=10",
    )
    return root / "chains"


Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_any_damage_to_any_file_is_noticed(chains_run: Path, tmp_path: Path, damage: Damage) -> None:
    newest = chains_run / "checkpoints" / checkpoint.name(10)
    names = [str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()]
    assert {"COMPLETE", "meta.json", "ema.pt", "energy/state.pt", "lanes/lane_00003.pt"} <= set(names)
    for number, name in enumerate(names):
        root = tmp_path / str(number)
        shutil.copytree(chains_run / "checkpoints", root)
        damage(root / newest.name / name)
        fault = checkpoint.faults(root / newest.name)
        assert fault is not None
        assert name in fault or name in ("COMPLETE", "meta.json")
        assert checkpoint.newest_valid(root) == root / checkpoint.name(5)


def test_a_checkpoint_can_be_looked_at(chains_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(chains_run, run)
    whole = call("tools/inspect_checkpoint.py", run)
    assert whole.returncode == 0, whole.stderr
    first, *rest = whole.stdout.splitlines()
    assert first == f"{run}/checkpoints/step_00000010 (latest): valid"
    assert any(line.split() == ["step", "10"] for line in rest)
    assert any("parameters after 10 updates" in line for line in rest)
    assert f"{run}/checkpoints/step_00000005: valid" in rest
    flip_a_bit(run / "checkpoints/step_00000005/energy/state.pt")
    damaged = call("tools/inspect_checkpoint.py", run)
    assert damaged.returncode == 1
    assert "step_00000005: DAMAGED (energy/state.pt was altered)" in damaged.stdout
    nothing = call("tools/inspect_checkpoint.py", tmp_path)
    assert nothing.returncode == 2
    assert "neither a checkpoint nor a run" in nothing.stderr


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_a_sentence_and_costs_one_checkpoint(overrides: list[str], small_disk: Path) -> None:
    overrides = [*overrides, f"paths.runs={small_disk}", "run=full", "model.energy.width=32"]
    trained(*overrides, "train.steps=5")
    run = small_disk / "full"
    size = sum(path.stat().st_size for path in (run / "checkpoints/step_00000005").rglob("*"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - size // 2))
    full = launch(*overrides, "train.steps=10")
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    message = full.stderr.rpartition("error: ")[2]
    assert message.startswith(f"cannot write checkpoint {run}/checkpoints/step_00000010 (")
    assert "the one before it is untouched" in message
    assert [path.name for path in (run / "checkpoints").glob("*step*")] == ["step_00000005"]
    assert checkpoint.faults(run / "checkpoints/step_00000005") is None
    filler.unlink()
    trained(*overrides, "train.steps=10")
    assert checkpoint.faults(run / "checkpoints/step_00000010") is None


# ---- how often, and which are kept


def test_saving_keeps_to_its_budget_and_the_best_is_kept(overrides: list[str], tmp_path: Path) -> None:
    overrides = [*overrides, "checkpoint.every=1", "checkpoint.keep=1"]
    trained(*overrides, "run=free", "train.steps=4")
    assert checkpoint.record_best(tmp_path / "free/checkpoints", 4, 12.5)
    assert not checkpoint.record_best(tmp_path / "free/checkpoints", 3, 12.5)
    trained(*overrides, "run=free", "train.steps=12")
    assert len(saved(tmp_path / "free")) == 12
    assert checkpoint.steps(tmp_path / "free/checkpoints") == [12, 4]
    assert checkpoint.best(tmp_path / "free/checkpoints") == {"checkpoint": "step_00000004", "fid": 12.5}
    bound = launch(*overrides, "run=bound", "train.steps=12", "checkpoint.max_overhead=0.0001")
    assert bound.returncode == 0
    assert bound.stderr.count("saving less often than checkpoint.every says") == 1
    assert 1 < len(saved(tmp_path / "bound")) < 12
    assert state(tmp_path / "bound", 12) == state(tmp_path / "free", 12)


def test_an_expensive_checkpoint_waits_until_its_share_of_the_time_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = count(0)  # a clock that moves by a second whenever it is read
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    budget = SaveBudget(max_share=0.5)
    assert budget.allows_save()
    budget.record_save(began=-2.0)  # took 4 or 5 s
    waits = [budget.allows_save() for _ in range(12)]
    assert waits == sorted(waits)
    assert not waits[5]
    assert waits[-1]


# ---- export

LOAD = """
import sys
blocked = {"deepspeed", "submitit", "webdataset", "hydra", "tensorboard"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import ggcn
assert "torch" not in sys.modules, "import ggcn is heavy"
images = ggcn.load(sys.argv[1]).sample(5, seed=2)
import torch
torch.save(images, sys.argv[2])
"""


def test_a_trained_model_fits_one_file(chains_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    done = call("tools/export.py", chains_run, "--out", out, "--step", 5)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.yaml").read_text() == public(load(chains_run / "config.yaml"))
    want = ggcn.load(chains_run, step=5).sample(5, seed=2)
    assert not torch.equal(want, ggcn.load(chains_run).sample(5, seed=2))
    for number, source in enumerate((out, chains_run)):
        got = tmp_path / f"{number}.pt"
        alone = [sys.executable, "-c", LOAD, str(source), str(got)]
        loaded = subprocess.run(alone, capture_output=True, text=True, cwd=ROOT)
        assert loaded.returncode == 0, loaded.stderr
        assert torch.load(got).shape == (5, 3, 16, 16)
    assert torch.allclose(want, torch.load(tmp_path / "0.pt"), atol=1e-4)
    drawn = call("tools/sample.py", out, "--count", 4, "--out", tmp_path / "grid.png", "--device", "cpu")
    assert drawn.returncode == 0, drawn.stderr


def test_what_is_no_exported_model_is_refused(chains_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert call("tools/export.py", chains_run, "--out", tmp_path / "model.pt").returncode == 2
    assert call("tools/export.py", chains_run, "--out", out).returncode == 0
    truncate(out)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        ggcn.load(out)
    with pytest.raises(UserError, match="is no run directory"):
        ggcn.load(tmp_path / "nowhere")
