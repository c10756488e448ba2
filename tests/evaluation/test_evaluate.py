"""A whole evaluation of a real run, as the command does it."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shard_files as shards
import torch
from helpers import TINY, call, command, quiet_environment
from torch import Tensor

import ggcn
from ggcn.applications.export import export
from ggcn.data import manifest_file
from ggcn.errors import UserError
from ggcn.evaluation import samples
from ggcn.evaluation.evaluate import Request, evaluate
from ggcn.evaluation.evaluator import Evaluator
from ggcn.evaluation.feature_cache import FeatureCache
from ggcn.evaluation.features import Network, network
from ggcn.evaluation.images import read, to_bytes
from ggcn.sampling.sampler import Sampler


class Coarse(Network):
    """Features that see an image's coarse colours, and count the images."""

    name = "coarse"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1) * self.scale


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the demo faces."""
    runs = tmp_path_factory.mktemp("runs")
    args = ["run=tiny", "train.steps=2", "cluster.ranks=1", "engine=plain", "engine.precision=fp32"]
    done = call(
        "cluster/launch.py", "-m", "local", *TINY, *args, f"data.shards={faces}", f"paths.runs={runs}"
    )
    assert done.returncode == 0, done.stderr
    return runs / "tiny"


@pytest.fixture(scope="module")
def sampler(run: Path) -> Sampler:
    return ggcn.load(run)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 pictures of noise."""
    folder = tmp_path_factory.mktemp("other") / "noise"
    shards.build(folder, [13, 7], size=16).save(folder)
    return folder


@pytest.fixture
def request_(tmp_path: Path, other: Path) -> Request:
    return Request(ood=[str(other)], count=24, cache=tmp_path / "cache")


def test_the_command_prints_a_table_and_writes_all_numbers(
    run: Path, faces: Path, other: Path, tmp_path: Path
) -> None:
    where = ["--cache", tmp_path / "cache", "--ood", other, "--holdout", other]
    done = call("tools/evaluate.py", run, "--count", 12, "--limit", 24, *where)
    assert done.returncode == 0, done.stderr
    [written] = (run / "evaluations").iterdir()
    result = json.loads(written.read_text())
    assert str(written) in done.stdout
    assert list(result["distances"]) == [
        "real half against half", "held-out", "PCA-50 Gaussian", "chain starts", "samples",
        "up-samplers alone", "up-samplers, then 1 step",
    ]  # fmt: skip
    assert f"{result['distances']['samples']['fid']:.2f}" in done.stdout
    assert result["data"]["trained_on_these"] is True
    assert result["data"]["sets"]["train"]["manifest"] == manifest_file.load(faces).hash
    assert result["features"].startswith("efficientnet-lite2")
    settings = result["distances"]["samples"]["settings"]
    assert (settings["step"], settings["seed"], settings["chain_step"]) == (2, 0, 3)
    assert [chain["grid"] for chain in settings["chains"]] == [4, 16]
    short = [result["distances"][f"up-samplers{row}"]["settings"] for row in (" alone", ", then 1 step")]
    assert [(row["mode"], row["chain_step"], row["chains"][0]["steps"]) for row in short] == [
        ("amortized", 0, 0), ("amortized", 1, 1),
    ]  # fmt: skip
    assert result["energy"]["sets"][f"ood {other}"]["auroc_against"] == "held-out"


def test_the_same_again_from_the_cache_and_from_an_exported_file(
    run: Path, sampler: Sampler, request_: Request, tmp_path: Path
) -> None:
    net = Coarse()
    first = evaluate(sampler, net, request_)
    assert (
        net.seen == 400 + 5 * 24
    )  # training pictures, Gaussian, starts and ends, up-samplers without and with a step
    again = evaluate(ggcn.load(run, step=2), net, request_)
    assert net.seen == 400 + 9 * 24
    assert again == first
    export(run, tmp_path / "tiny.safetensors")
    alone = evaluate(ggcn.load(tmp_path / "tiny.safetensors"), net, request_)
    assert alone["samples"]["step"] == 2
    for row, numbers in alone["distances"].items():
        assert numbers["fid"] == first["distances"][row]["fid"]
    assert alone["energy"] == first["energy"]
    assert alone["data"]["trained_on_these"] is None


def test_another_manifest_is_noticed(
    sampler: Sampler, faces: Path, request_: Request, tmp_path: Path
) -> None:
    net = Coarse()
    cached = evaluate(sampler, net, request_)
    moved = tmp_path / "moved"
    shutil.copytree(faces, moved)
    before = net.seen
    same = evaluate(sampler, net, replace(request_, data=str(moved)))
    assert net.seen == before + 4 * 24  # the place of the shards does not matter
    assert same["distances"] == cached["distances"]
    shards.build(tmp_path / "noise", [400], size=16).save(tmp_path / "noise")
    before = net.seen
    result = evaluate(sampler, net, replace(request_, data=str(tmp_path / "noise")))
    assert net.seen == before + 400 + 5 * 24
    assert result["data"]["trained_on_these"] is False
    assert result["distances"]["samples"]["fid"] != cached["distances"]["samples"]["fid"]


def test_samples_and_distances_are_those_of_the_sampler_and_the_evaluator(
    sampler: Sampler, request_: Request
) -> None:
    net = Coarse()
    result = evaluate(sampler, net, request_)
    drawn = samples.draw_samples(sampler, 24, 0)
    expected = to_bytes(sampler.sample(24))
    assert torch.equal(drawn.ends, expected)
    assert not torch.equal(drawn.starts, expected)
    assert torch.equal(samples.draw_samples(sampler, 24, 0, batch=8).ends, expected)
    shard_folder = result["data"]["sets"]["train"]["folder"]
    evaluator = Evaluator(net, read(shard_folder, 16, 1000), FeatureCache(request_.cache))
    score = evaluator.evaluate(drawn.ends)
    assert {name: result["distances"]["samples"][name] for name in score} == score


def test_energies_are_the_model_s_own(sampler: Sampler, request_: Request) -> None:
    result = evaluate(sampler, Coarse(), request_)["energy"]
    assert result["grid"] == 16
    assert sum(result["histograms"]["counts"]["train"]) == 400
    assert 0 <= result["sets"]["samples"]["auroc"] <= 1
    pixels = read(request_.ood[0], 16, 1000).pixels
    results = samples.energies(sampler, pixels, batch=3)
    images = pixels.float() / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(results, sampler.energies.energy(1, images, "fp32"), atol=1e-5)
    name = f"ood {request_.ood[0]}"
    assert result["sets"][name]["mean"] == pytest.approx(float(results.mean()), rel=1e-4)


def test_pictures_come_in_the_manifest_s_order_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    images = [shards.encode(shards.noise_image(number), "png") for number in range(20)]
    images[5] = b"no picture"
    shards.build(tmp_path, [9, 11], images=images).save(tmp_path)
    results = read(tmp_path, 8, 1000)
    good = [shards.noise_image(number) for number in range(20) if number != 5]
    assert np.array_equal(results.pixels.permute(0, 2, 3, 1).numpy(), np.stack(good))
    assert results.undecodable == 1
    few = read(tmp_path, 4, 15)
    assert few.pixels.shape == (14, 3, 4, 4)
    assert few.key != results.key
    with pytest.raises(UserError, match="cannot be averaged down to 5"):
        read(tmp_path, 5, 1000)
    with pytest.raises(UserError, match="give at least"):
        read(tmp_path, 8, 6)


def refused(*args: object, environment: dict[str, str] | None = None) -> str:
    """The one sentence with which the command refuses."""
    done = subprocess.run(
        command("tools/evaluate.py", *args),
        capture_output=True,
        text=True,
        env=quiet_environment() | (environment or {}),
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_missing_extra_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "torchmetrics.py").write_text("raise ModuleNotFoundError('no', name='torchmetrics')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "pip install -e .[eval]" in refused(run, environment={"PYTHONPATH": path})


def test_inception_is_never_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --weights FILE"):
        network("inception")
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match="torch-fidelity"):
        network("inception", tmp_path / "weights.pth")


def test_a_mistake_in_a_request_is_one_sentence(sampler: Sampler, request_: Request, tmp_path: Path) -> None:
    wrong = {
        "--count 3 is too small": replace(request_, count=3),
        "no shards in": replace(request_, holdout=str(tmp_path)),
        "--limit 2 is too small": replace(request_, limit=2),
    }
    for args, what in wrong.items():
        with pytest.raises(UserError, match=args):
            evaluate(sampler, Coarse(), what)


def test_chains_that_diverged_are_one_sentence(run: Path, request_: Request) -> None:
    diverged = ggcn.load(run)
    next(diverged.energies.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="did not stay finite"):
        evaluate(diverged, Coarse(), request_)


def test_samples_that_copy_the_training_set_are_flagged(
    sampler: Sampler, faces: Path, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read(faces, 16, 24).pixels
    drawn = samples.Samples(own, own, samples.energies(sampler, own))
    monkeypatch.setattr(samples, "sample_batches", lambda *_: iter([drawn]))
    result = evaluate(sampler, Coarse(), request_)
    assert result["memorization"]["memorized"]
    assert result["memorization"]["pixels"]["copies"] == 1
    monkeypatch.undo()
    assert not evaluate(sampler, Coarse(), request_)["memorization"]["memorized"]
