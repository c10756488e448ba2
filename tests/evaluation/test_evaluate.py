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
from ggcn.evaluation.evaluate import Evaluator, Request, evaluate
from ggcn.evaluation.feature_cache import Cache
from ggcn.evaluation.features import Network, network
from ggcn.evaluation.images import gaussian, read, to_bytes
from ggcn.sampling.sampler import Sampler


class Coarse(Network):
    """Features that see a picture's coarse colours, and count what they see."""

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
    words = ["run=tiny", "train.steps=2", "cluster.ranks=1", "engine=plain", "engine.precision=fp32"]
    done = call(
        "cluster/launch.py", "-m", "local", *TINY, *words, f"data.shards={faces}", f"paths.runs={runs}"
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
    told = json.loads(written.read_text())
    assert str(written) in done.stdout
    assert list(told["rows"]) == [
        "real half against half", "held-out", "PCA-50 Gaussian", "chain starts", "samples",
    ]  # fmt: skip
    assert f"{told['rows']['samples']['fid']:.2f}" in done.stdout
    assert told["data"]["trained_on_these"] is True
    assert told["data"]["sets"]["train"]["manifest"] == manifest_file.load(faces).hash
    assert told["features"].startswith("efficientnet-lite2")
    settings = told["rows"]["samples"]["settings"]
    assert (settings["step"], settings["seed"], settings["chain_step"]) == (2, 0, 3)
    assert [chain["grid"] for chain in settings["chains"]] == [4, 16]
    assert told["energy"]["sets"][f"ood {other}"]["auroc_against"] == "held-out"


def test_the_same_again_from_the_cache_and_from_an_exported_file(
    run: Path, sampler: Sampler, request_: Request, tmp_path: Path
) -> None:
    net = Coarse()
    first = evaluate(sampler, net, request_)
    assert net.seen == 400 + 3 * 24  # training pictures, Gaussian, starts and ends
    again = evaluate(ggcn.load(run, step=2), net, request_)
    assert net.seen == 400 + 5 * 24
    assert again == first
    export(run, tmp_path / "tiny.safetensors")
    alone = evaluate(ggcn.load(tmp_path / "tiny.safetensors"), net, request_)
    assert alone["samples"]["step"] == 2
    for row, numbers in alone["rows"].items():
        assert numbers["fid"] == first["rows"][row]["fid"]
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
    assert net.seen == before + 2 * 24  # the place of the shards does not matter
    assert same["rows"] == cached["rows"]
    shards.build(tmp_path / "noise", [400], size=16).save(tmp_path / "noise")
    before = net.seen
    told = evaluate(sampler, net, replace(request_, data=str(tmp_path / "noise")))
    assert net.seen == before + 400 + 3 * 24
    assert told["data"]["trained_on_these"] is False
    assert told["rows"]["samples"]["fid"] != cached["rows"]["samples"]["fid"]


def test_samples_are_the_sampler_s_own_and_rows_what_a_judge_says(
    sampler: Sampler, request_: Request
) -> None:
    net = Coarse()
    told = evaluate(sampler, net, request_)
    drawn = samples.drawn(sampler, 24, 0)
    wanted = to_bytes(sampler.sample(24))
    assert torch.equal(drawn.ends, wanted)
    assert not torch.equal(drawn.starts, wanted)
    assert torch.equal(samples.drawn(sampler, 24, 0, batch=8).ends, wanted)
    shard_folder = told["data"]["sets"]["train"]["folder"]
    judge = Evaluator(net, read(shard_folder, 16, 1000), Cache(request_.cache))
    score = judge.score(drawn.ends)
    assert {name: told["rows"]["samples"][name] for name in score} == score


def test_energies_are_the_model_s_own(sampler: Sampler, request_: Request) -> None:
    told = evaluate(sampler, Coarse(), request_)["energy"]
    assert told["grid"] == 16
    assert sum(told["histograms"]["counts"]["train"]) == 400
    assert 0 <= told["sets"]["samples"]["auroc"] <= 1
    pixels = read(request_.ood[0], 16, 1000).pixels
    found = samples.energies(sampler, pixels, batch=3)
    images = pixels.float() / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(found, sampler.energies.energy(1, images, "fp32"), atol=1e-5)
    name = f"ood {request_.ood[0]}"
    assert told["sets"][name]["mean"] == pytest.approx(float(found.mean()), rel=1e-4)


def test_pictures_come_in_the_manifest_s_order_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    images = [shards.encode(shards.noise_image(number), "png") for number in range(20)]
    images[5] = b"no picture"
    shards.build(tmp_path, [9, 11], images=images).save(tmp_path)
    found = read(tmp_path, 8, 1000)
    good = [shards.noise_image(number) for number in range(20) if number != 5]
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), np.stack(good))
    assert found.undecodable == 1
    some = read(tmp_path, 4, 15)
    assert some.pixels.shape == (14, 3, 4, 4)
    assert some.key != found.key
    with pytest.raises(UserError, match="cannot be averaged down to 5"):
        read(tmp_path, 5, 1000)
    with pytest.raises(UserError, match="are the least"):
        read(tmp_path, 8, 6)


def test_the_gaussian_has_the_pictures_mean_and_main_directions() -> None:
    dice = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(48, 3, generator=dice))
    scores = torch.randn(4000, 3, generator=dice) * torch.tensor([60.0, 40.0, 20.0])
    pixels = (128 + scores @ axes.T).clamp(0, 255).round().to(torch.uint8).view(-1, 3, 4, 4)
    drawn = gaussian(pixels, 3, 4000, seed=0).flatten(1).float()
    assert torch.allclose(drawn.mean(0), pixels.flatten(1).float().mean(0), atol=2.5)
    assert ((drawn - 128) @ axes).std(0).tolist() == pytest.approx([60, 40, 20], rel=0.05)
    assert torch.equal(gaussian(pixels, 3, 10, seed=5), gaussian(pixels, 3, 10, seed=5))


def refused(*words: object, environment: dict[str, str] | None = None) -> str:
    """The one sentence with which the command refuses."""
    done = subprocess.run(
        command("tools/evaluate.py", *words),
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


def test_wrong_words_are_one_sentence_each(sampler: Sampler, request_: Request, tmp_path: Path) -> None:
    wrong = {
        "--count 3 is too small": replace(request_, count=3),
        "no shards in": replace(request_, holdout=str(tmp_path)),
        "--limit 2 is too small": replace(request_, most=2),
    }
    for words, what in wrong.items():
        with pytest.raises(UserError, match=words):
            evaluate(sampler, Coarse(), what)


def test_chains_that_left_the_numbers_are_one_sentence(run: Path, request_: Request) -> None:
    lost = ggcn.load(run)
    next(lost.energies.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="did not stay finite"):
        evaluate(lost, Coarse(), request_)


def test_samples_that_copy_the_training_set_are_flagged(
    sampler: Sampler, faces: Path, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read(faces, 16, 24).pixels
    drawn = samples.Drawn(own, own, samples.energies(sampler, own))
    monkeypatch.setattr(samples, "parts", lambda *_: iter([drawn]))
    told = evaluate(sampler, Coarse(), request_)
    assert told["memorisation"]["memorised"]
    assert told["memorisation"]["pixels"]["copies"] == 1
    monkeypatch.undo()
    assert not evaluate(sampler, Coarse(), request_)["memorisation"]["memorised"]
