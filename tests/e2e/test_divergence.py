"""Runs that go wrong, through the front door: what the guard makes of them, and what becomes of them without it."""

import json
import shutil
import signal
import subprocess
from math import isfinite
from pathlib import Path

import launch_with_fault
import pytest
import torch
from helpers import TINY, command, quiet_environment

from ggcn.config.compose import compose
from ggcn.config.schema import GuardConfig
from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import job
from ggcn.launch.signals import StopSignal
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir

GROWN, END = 40, 46
FAULTS = {"rate": f"rate {GROWN} {GROWN + 20}", "nan": "nan 43 44", "step": f"step {GROWN} {GROWN + 20}"}
"""learning rates x 100 and chain steps x 50, for 20 steps; a NaN in one image"""

SETTINGS = ["model=ggcn_contrastive", "engine=plain", "cluster.ranks=1", "train.energy.warmup=10"]
"""energies that learn from chains, which larger chain steps spoil, in this process"""


@pytest.fixture(scope="module")
def grown(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of GROWN steps, long enough for its chains to feel the energy."""
    overrides = [*SETTINGS, f"train.steps={GROWN}", "run=x"]
    place = tmp_path_factory.mktemp("grown")
    return train([*TINY, *overrides, f"data.shards={faces}", f"paths.runs={place}"])


@pytest.fixture
def overrides(grown: RunDir, faces: Path, tmp_path: Path) -> list[str]:
    """Overrides that take a copy of the grown run to END."""
    shutil.copytree(grown.path, tmp_path / "x")
    overrides = [*SETTINGS, f"train.steps={END}", "run=x"]
    return [*TINY, *overrides, f"data.shards={faces}", f"paths.runs={tmp_path}"]


def train(overrides: list[str]) -> RunDir:
    """Trains in this process, as one rank."""
    run = RunDir.of(config := compose(overrides))
    run.freeze(config)
    try:
        job.run_rank(run, RankInfo(), StopSignal(), watched=False)
    finally:
        process_group.shutdown()
    return run


def launch(mode: str, overrides: list[str], **environment: str) -> subprocess.CompletedProcess:
    """The launcher with a fault built in, in processes of its own."""
    return subprocess.run(
        command("tests/e2e/launch_with_fault.py", "-m", mode, *overrides),
        capture_output=True,
        text=True,
        env=quiet_environment() | environment,
        timeout=240,
        check=False,
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_healthy(line: dict) -> bool:
    """Whether a line of metrics is finite, and within the guard's limits."""
    guard = GuardConfig()
    numbers = [value for value in line.values() if isinstance(value, float)]
    return (
        all(map(isfinite, numbers))
        and abs(line["energy_gap/4"]) + abs(line["energy_gap/16"]) < guard.energy_gap
        and line["energy_gradient_norm"] < guard.grad_norm
        and line["saturation/16"] < guard.saturation
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    result: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.pt")):
        _collect(str(path.relative_to(folder)), torch.load(path, weights_only=True), result)
    return result


def _collect(name: str, value: object, into: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        into[name] = value
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
    ):
        _collect(f"{name}/{key}", part, into)


def same(one: Path, two: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    first, second = tensors(one), tensors(two)
    assert len(first) > 20
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_guard_saves_a_run_that_would_be_lost_without_it(
    fault: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "x", tmp_path / "unguarded/x")
    launch_with_fault.install(FAULTS[fault], monkeypatch.setattr)
    run = train(overrides)
    (incident,) = lines(run.incidents)
    assert GROWN < incident["step"] <= GROWN + 4
    assert (incident["rolled_back_to"], incident["attempt"], incident["gave_up"]) == (GROWN, 0, False)
    assert incident["reasons"]
    assert not is_healthy(
        {"energy_gap/4": 0.0, "saturation/16": 0.0, **incident["signals"]} | _numbers(incident)
    )
    saved = lines(run.metrics)
    assert [line["step"] for line in saved] == list(range(1, END + 1))
    assert all(is_healthy(line) for line in saved)
    assert {line["health"] for line in saved} == {"healthy"}
    final = tensors(run.checkpoints / f"step_{END:08d}")
    assert all(bool(tensor.isfinite().all()) for tensor in final.values())

    lost = [*overrides, "guard.enabled=false", f"paths.runs={tmp_path}/unguarded"]
    if fault == "nan":
        with pytest.raises(UserError, match="training diverged at step 44"):
            train(lost)
    else:
        train(lost)
        assert not is_healthy(lines(tmp_path / "unguarded/x/metrics.jsonl")[-1])
    assert not (tmp_path / "unguarded/x/incidents.jsonl").exists()


def _numbers(incident: dict) -> dict[str, float]:
    """The signals as numbers: what is not finite is written in overrides."""
    return {name: float(value) for name, value in incident["signals"].items()}


def test_killed_right_after_an_incident_a_run_ends_as_if_not(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "x", tmp_path / "killed/x")
    launch_with_fault.install(FAULTS["rate"], monkeypatch.setattr)
    uninterrupted = train(overrides)
    overrides = [*overrides, f"paths.runs={tmp_path}/killed"]
    killed = launch("debug", overrides, INJECT=FAULTS["rate"], KILL="1")
    assert killed.returncode == -signal.SIGKILL
    assert len(lines(tmp_path / "killed/x/incidents.jsonl")) == 1
    assert not (tmp_path / f"killed/x/checkpoints/step_{END:08d}").exists()
    resumed = train(overrides)
    assert len(lines(resumed.incidents)) == 1
    last = checkpoint.name(END)
    assert same(uninterrupted.checkpoints / last, resumed.checkpoints / last)
    for one, two in zip(lines(uninterrupted.metrics), lines(resumed.metrics), strict=True):
        assert (one["step"], one["health"], one["energy_loss"]) == (
            two["step"],
            two["health"],
            two["energy_loss"],
        )


def test_at_the_cap_a_sentence_and_a_healthy_checkpoint(overrides: list[str], tmp_path: Path) -> None:
    overrides = [*overrides, "guard.max_rollbacks=2"]
    failed = launch("debug", overrides, INJECT=f"{FAULTS['rate']} always")
    assert failed.returncode == 2
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    incidents = lines(tmp_path / "x/incidents.jsonl")
    assert GROWN < incidents[-1]["step"] <= GROWN + 4
    assert f"training diverged at step {incidents[-1]['step']} " in last
    assert "after 2 rollbacks" in last
    assert "step_00000040 is healthy and valid; lower train.energy.lr or model.chain.step_size" in last
    assert [incident["gave_up"] for incident in incidents] == [False, False, True]
    assert [incident["attempt"] for incident in incidents] == [0, 1, 2]
    assert [incident["rolled_back_to"] for incident in incidents] == [40, 35, 40]
    continued = train(overrides)
    assert [line["step"] for line in lines(continued.metrics)] == list(range(1, END + 1))
    assert all(is_healthy(line) for line in lines(continued.metrics))


def test_what_is_usual_is_remembered_unless_the_config_changes(overrides: list[str], tmp_path: Path) -> None:
    """Longer chains, say, reach further, which is no divergence."""
    shutil.copytree(tmp_path / "x", tmp_path / "changed/x")
    for changes, known in (
        ([], END),
        (["model.chain.steps=[9]", f"paths.runs={tmp_path}/changed"], END - GROWN),
    ):
        run = train([*overrides, *changes])
        assert (
            checkpoint.meta(run.checkpoints / checkpoint.name(END))["guard"]["counts"]["displacement/16"]
            == known
        )


def two_ranks(faces: Path, place: Path, stage: int = 2, model: str = "gcn") -> list[str]:
    """Overrides of a run of 16 steps by DeepSpeed, with persistent chains if the model has them."""
    overrides = [
        "train.steps=16",
        f"engine.zero_stage={stage}",
        f"model={model}",
        "model.replay_buffer.chains=8",
        "run=x",
    ]
    grids = ["model.grids=[16]"] if model == "gcn" else []
    return [*TINY, *overrides, *grids, f"data.shards={faces}", f"paths.runs={place}"]


def test_a_nan_on_one_of_two_ranks_rolls_both_back(faces: Path, tmp_path: Path) -> None:
    done = launch("local", two_ranks(faces, tmp_path), INJECT="nan 12 13")
    assert done.returncode == 0, done.stderr
    assert "step 13 diverged (energy_data/16 is not finite" in done.stderr
    assert "going back to step 10" in done.stderr
    (incident,) = lines(tmp_path / "x/incidents.jsonl")
    assert (incident["step"], incident["rolled_back_to"]) == (13, 10)
    assert all(is_healthy({"energy_gap/4": 0.0, **line}) for line in lines(tmp_path / "x/metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(("model", "first"), [("gcn", 12), ("ggcn", 3)])
def test_a_rollback_leaves_ranks_as_new_ones_would_be(
    stage: int, model: str, first: int, faces: Path, tmp_path: Path
) -> None:
    """To a checkpoint, or to the initial weights where there is none yet."""
    fault = f"nan {first} {first + 1}"
    uninterrupted = launch("local", two_ranks(faces, tmp_path / "uninterrupted", stage, model), INJECT=fault)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    overrides = two_ranks(faces, tmp_path / "killed", stage, model)
    assert launch("local", overrides, INJECT=fault, KILL="1").returncode == 2
    (incident,) = lines(tmp_path / "killed/x/incidents.jsonl")
    assert (incident["step"], incident["rolled_back_to"]) == (first + 1, first // 5 * 5)
    resumed = launch("local", overrides, INJECT=fault)
    assert resumed.returncode == 0, resumed.stderr
    last = f"x/checkpoints/{checkpoint.name(16)}"
    assert same(tmp_path / "uninterrupted" / last, tmp_path / "killed" / last)
