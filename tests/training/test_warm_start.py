"""A run begins with another run's weights, and never needs that run again."""

import json
import shutil
from pathlib import Path

import pytest
import shard_files
import torch
from helpers import TINY, call
from torch import Tensor

import ggcn
from ggcn.applications.export import export
from ggcn.config.compose import compose, load, public
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.run import init_source
from ggcn.run.directory import RunDir
from ggcn.training import warm_start
from ggcn.training.warm_start import WarmStart


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of noise at 32 px."""
    folder = tmp_path_factory.mktemp("shards")
    shard_files.build(folder, [24, 24], size=32)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 4 and 16 px, on shards of its own, with checkpoints at steps 5 and 6."""
    runs = tmp_path_factory.mktemp("source")
    shard_files.build(runs / "shards", [24, 24], size=16)
    return ggcn.train(config(runs / "shards", runs, "coarse", "train.steps=6")).path


def config(shards: Path, runs: Path, name: str, *overrides: str) -> Config:
    base = [*TINY, "engine=plain", "engine.precision=fp32", f"data.shards={shards}", f"paths.runs={runs}"]
    return compose([*base, f"run={name}", *overrides])


def finer(shards: Path, runs: Path, name: str, *overrides: str) -> Config:
    """A run at 4, 16 and 32 px."""
    return config(shards, runs, name, "model.grids=[4,16,32]", *overrides)


def averages(run: Path, step: int) -> dict[str, dict[str, Tensor]]:
    return torch.load(run / f"checkpoints/step_{step:08d}/ema.pt", weights_only=True)


def begun(config: Config) -> WarmStart:
    """What a run would begin with, without training it."""
    run = RunDir.of(config)
    run.freeze(config)
    start = warm_start.read(load(run.config), run)
    assert start
    return start


def start_event(run: Path) -> dict:
    return json.loads((run / "submissions.jsonl").read_text().splitlines()[0])


STILL = ["train.steps=1", "train.energy.lr=1e-12", "train.upsampler.lr=1e-12"]
"""with which one step leaves the averaged weights almost where they were"""


def test_grids_that_both_have_carry_over_and_the_others_begin_anew(
    shards: Path, source: Path, tmp_path: Path
) -> None:
    run = ggcn.train(finer(shards, tmp_path, "fine", *STILL, f"train.init_from={source}")).path
    old, new = averages(source, 6), averages(run, 1)
    for network in ("energies", "upsamplers"):
        for name, value in old[network].items():
            assert torch.allclose(new[network][name], value, atol=1e-6), name
    assert new["upsamplers"]["grids.2.base.weight"].abs().max() > 0  # fitted to this run's images
    log = (run / "logs/rank_0000.log").read_text()
    assert (
        f"weights of {source}: energy of 4 px, energy of 16 px, up-sampler to 4 px, up-sampler from 4 to"
        in log
    )
    assert (
        "begins anew: energy of 32 px (the source has none); up-sampler from 16 to 32 px (the source" in log
    )
    frozen = load(run / "config.yaml").train
    assert frozen.init_from == str(source)
    assert start_event(run)["init"] | {"files": 0} == {
        "path": str(source),
        "step": 6,
        "weights": "averaged",
        "sha256": frozen.init_hash,
        "files": 0,
    }


def test_raw_weights_of_a_step_are_those_of_the_optimizer(shards: Path, source: Path, tmp_path: Path) -> None:
    config = finer(shards, tmp_path, "fine", f"train.init_from={source}@5", "train.init_weights=raw")
    weights = begun(config).networks[0].state_dict()
    engine = torch.load(source / "checkpoints/step_00000005/energy/state.pt", weights_only=True)["parameters"]
    averaged = averages(source, 5)["energies"]
    for name in averaged:
        assert torch.equal(weights[name], engine[f"energies.{name}"]["weight"])
    assert not all(torch.equal(weights[name], averaged[name]) for name in averaged)
    assert init_source.facts(tmp_path / "fine")["step"] == 5


def test_what_has_another_form_begins_anew(shards: Path, source: Path, tmp_path: Path) -> None:
    changes = ["model.energy.activation=softplus", "model.upsampler.z_dim=4", f"train.init_from={source}"]
    start = begun(config(shards, tmp_path, "other", *changes))
    assert start.carried == ["up-sampler from 4 to 16 px"]
    assert start.anew == [
        "energy of 4 px (silu there, softplus here)",
        "energy of 16 px (silu there, softplus here)",
        "up-sampler to 4 px (base.weight is [48, 8] there, [48, 4] here)",
    ]
    assert start.buffers == {"grids.1.base.weight", "grids.1.base.bias"}
    nothing = config(shards, tmp_path, "nothing", "model.grids=[8,32]", f"train.init_from={source}")
    with pytest.raises(UserError, match=r"nothing in train.init_from=.* fits this model \(energy of 8 px"):
        begun(nothing)


def test_a_run_goes_on_without_its_source_to_the_same_bits(
    shards: Path, source: Path, tmp_path: Path
) -> None:
    gone = shutil.copytree(source, tmp_path / "gone")
    overrides = [f"train.init_from={gone}", "train.steps=2"]
    one, two = (finer(shards, tmp_path, name, *overrides) for name in ("one", "two"))
    for each in (one, two):
        RunDir.of(each).freeze(each)  # as a launcher does before its job waits in a queue
    with (gone / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("# the source goes on\n")
    shutil.rmtree(gone)
    assert ggcn.train(one).finished
    two.train.steps = 1
    ggcn.train(two)
    shutil.rmtree(tmp_path / "two/init")  # a user makes space
    two.train.steps = 2
    ggcn.train(two)
    first, second = averages(tmp_path / "one", 2), averages(tmp_path / "two", 2)
    for network in first:
        assert all(torch.equal(first[network][name], second[network][name]) for name in first[network])


def test_the_same_command_means_the_same_weights_when_the_source_has_gone_on(
    shards: Path, source: Path, tmp_path: Path
) -> None:
    moving = shutil.copytree(source, tmp_path / "moving")
    ours = config(shards, tmp_path, "ours", f"train.init_from={moving}")
    begun(ours)
    shutil.copytree(moving / "checkpoints/step_00000005", moving / "checkpoints/step_00000009")
    RunDir.of(ours).refuse_changes(ours)
    renamed = config(shards, tmp_path, "ours", f"train.init_from={source}")
    RunDir.of(ours).refuse_changes(renamed)  # the same weights in another place
    other = config(shards, tmp_path, "ours", f"train.init_from={source}@5")
    for changed in (other, config(shards, tmp_path, "ours")):
        with pytest.raises(UserError, match=r"another config \(train.init_hash"):
            RunDir.of(ours).refuse_changes(changed)


def test_an_exported_file_starts_a_run_and_tells_no_paths(shards: Path, source: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    export(source, file)
    fine = finer(shards, tmp_path, "fine", f"train.init_from={file}")
    weights = begun(fine).networks[0].state_dict()
    assert all(torch.equal(weights[name], value) for name, value in averages(source, 6)["energies"].items())
    assert "init_from: model.safetensors\n" in public(load(tmp_path / "fine/config.yaml"))
    raw = finer(shards, tmp_path, "raw", f"train.init_from={file}", "train.init_weights=raw")
    with pytest.raises(UserError, match=r"exported file, which has averaged weights alone"):
        ggcn.train(raw)


def test_sources_that_cannot_be_begun_with_are_one_sentence(
    shards: Path, source: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(source, tmp_path / "damaged")
    for path in damaged.glob("checkpoints/*/ema.pt"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    wrong = {
        f"{tmp_path}/nosuch": "is neither a run directory",
        "hf://me/faces": "is no path; download the model",
        f"{source}@7": r"has no valid checkpoint to begin with \(no checkpoint of step 7\); its steps: 6, 5",
        f"{damaged}": r"step_00000006: ema.pt was altered; step_00000005: ema.pt was altered",
    }
    for text, sentence in wrong.items():
        fine = finer(shards, tmp_path, "fine", f"train.init_from={text}")
        with pytest.raises(UserError, match=sentence):
            ggcn.train(fine)
    pinned = finer(shards, tmp_path, "fine", f"train.init_from={source}", "train.init_hash=abc")
    with pytest.raises(UserError, match=r"have the hash [0-9a-f]{64}, not train.init_hash=abc"):
        ggcn.train(pinned)


@pytest.mark.slow
def test_one_and_two_ranks_begin_the_same_run(shards: Path, source: Path, tmp_path: Path) -> None:
    common = [*TINY, "engine.precision=fp32", f"data.shards={shards}", f"paths.runs={tmp_path}"]
    common += ["model.grids=[4,16,32]", f"train.init_from={source}", "train.steps=6"]
    for ranks in (1, 2):
        stage = f"engine.zero_stage={ranks}"
        done = call(
            "cluster/launch.py", "-m", "local", *common, stage, f"cluster.ranks={ranks}", f"run=r{ranks}"
        )
        assert done.returncode == 0, done.stderr
    one, two = averages(tmp_path / "r1", 6), averages(tmp_path / "r2", 6)
    for network in one:
        for name, value in one[network].items():
            assert torch.allclose(value, two[network][name], atol=1e-4), name
