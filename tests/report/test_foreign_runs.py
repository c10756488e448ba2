"""Runs and model files that somebody else made, and what of one's own others may read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import shard_files as shards
import torch
from helpers import TINY, call
from safetensors import safe_open
from safetensors.torch import save_file

import ggcn
from ggcn import files, report
from ggcn.applications import export
from ggcn.cli.options import data_config
from ggcn.config.compose import compose, to_yaml
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.evaluation.evaluate import Request, evaluate
from ggcn.evaluation.features import Network
from ggcn.models import build
from ggcn.run.directory import RunDir
from ggcn.sampling.sampler import Sampler


class Colours(Network):
    """Features for which no weights are needed."""

    name = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1) * self.scale


def model_file(path: Path, config: Config) -> Path:
    """An exported file whose config is this one, every section of it."""
    trained = Sampler(config, *build(config))
    facts = {"format": export.FORMAT, "config": to_yaml(config), "step": "1", "ggcn": "0"}
    save_file(export.weights(trained), path, facts)
    return path


def run_directory(folder: Path, config: Config) -> Path:
    """A run of one step as it lies on the disk."""
    trained = Sampler(config, *build(config))
    run = RunDir(folder)
    step = run.checkpoints / "step_00000001"
    step.mkdir(parents=True)
    run.config.write_text(to_yaml(config), encoding="utf-8")
    weights = {"energies": trained.energies.state_dict(), "upsamplers": trained.upsamplers.state_dict()}
    torch.save(weights, step / "ema.pt")
    (step / "meta.json").write_text(json.dumps({"step": 1, "files": {}}), encoding="utf-8")
    (step / "COMPLETE").write_text(files.sha256(step / "meta.json"), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", [model_file, run_directory])
def test_no_command_runs_because_a_file_says_so(kind: Callable[[Path, Config], Path], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    overrides = [
        f"data.shards=pipe:touch {ran}; cat {{}}",
        "data.allow_pipe=true",
        f"data.cache_dir={tmp_path}",
    ]
    path = kind(tmp_path / "model.safetensors", compose([*TINY, "engine=plain", *overrides]))
    sampler = ggcn.load(path)
    assert sampler.config.data.allow_pipe is False
    for request in (Request(count=12), Request(data=sampler.config.data.shards, config=sampler.config.data)):
        with pytest.raises(UserError, match="add --data SHARDS|runs a shell command; if you trust it"):
            evaluate(sampler, Colours(), request)
    done = call("tools/evaluate.py", path, "--cache", tmp_path / "cache")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert not ran.exists()


def test_no_server_is_asked_because_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for folder in ("http://127.0.0.1:9/x?token=abc", "s3://bucket/x", "${oc.env:SECRET}/x"):
        sampler = ggcn.load(model_file(tmp_path / "m.safetensors", compose([*TINY, f"data.shards={folder}"])))
        with pytest.raises(
            UserError, match="which is read only when you name it; add --data SHARDS"
        ) as caught:
            evaluate(sampler, Colours(), Request(count=12, cache=tmp_path))
        assert "hunter2" not in str(caught.value)
        assert "abc" not in str(caught.value)


def test_a_command_runs_where_the_command_line_allows_it(tmp_path: Path) -> None:
    shards.build(tmp_path / "noise", [20], size=16).save(tmp_path / "noise")
    sampler = ggcn.load(model_file(tmp_path / "m.safetensors", compose([*TINY, "data.shards=x"])))
    folder = f"pipe:cat {tmp_path}/noise/{{}}"
    with pytest.raises(UserError, match="--allow-pipe in a tool"), data_config(allow_pipe=False) as config:
        evaluate(sampler, Colours(), Request(folder, count=12, cache=tmp_path, config=config))
    with data_config(allow_pipe=True) as config:
        result = evaluate(sampler, Colours(), Request(folder, count=12, cache=tmp_path, config=config))
    assert result["data"]["sets"]["train"]["folder"] == "pipe:cat ***"


def test_a_path_of_the_run_itself_is_read_but_no_variable_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.build(tmp_path / "noise", [20], size=16).save(tmp_path / "noise")
    config = compose([*TINY, f"data.shards={tmp_path}/noise"])
    sampler = ggcn.load(model_file(tmp_path / "m.safetensors", config))
    assert evaluate(sampler, Colours(), Request(count=12, cache=tmp_path))["samples"]["count"] == 12
    monkeypatch.setenv("SECRET", str(tmp_path))
    config = compose([*TINY, r"data.shards=/net/$SECRET/noise"])
    sampler = ggcn.load(model_file(tmp_path / "m.safetensors", config))
    with pytest.raises(UserError, match=r"trained on /net/\$SECRET/noise, .*; add --data SHARDS") as caught:
        evaluate(sampler, Colours(), Request(count=12, cache=tmp_path))
    assert str(tmp_path) not in str(caught.value)


def test_the_holdout_beside_a_file_url_is_found(tmp_path: Path) -> None:
    for place, count in ((tmp_path / "noise", 20), (tmp_path / "noise/holdout", 15)):
        shards.build(place, [count], size=16).save(place)
    sampler = ggcn.load(model_file(tmp_path / "m.safetensors", compose([*TINY, "data.shards=x"])))
    result = evaluate(sampler, Colours(), Request(f"file://{tmp_path}/noise", count=12, cache=tmp_path))
    assert result["data"]["sets"]["held-out"]["count"] == 15


@pytest.mark.parametrize("change", ["no config", "another model", "an interpolation"])
def test_a_file_that_contradicts_itself_is_one_sentence(change: str, tmp_path: Path) -> None:
    config = compose(TINY)
    facts = {"format": export.FORMAT, "config": to_yaml(config), "step": "1"}
    tensors = export.weights(Sampler(config, *build(config)))
    if change == "no config":
        del facts["config"]
    elif change == "another model":
        facts["config"] = to_yaml(compose([*TINY, "model.energy.width=16"]))
    else:
        facts["config"] = facts["config"].replace("seed: 3", "seed: ${oc.env:HOME}")
    save_file(tensors, tmp_path / "m.safetensors", facts)
    sentence = "was not written by|do not fit the config|seed holds an interpolation"
    with pytest.raises(UserError, match=sentence):
        ggcn.load(tmp_path / "m.safetensors")


PRIVATE = [
    "data.shards=https://me:hunter2@h/x?X-Amz-Signature=hunter2",
    "data.cache_dir=/home/hunter2",
    "cluster.setup=['export HF_TOKEN=hunter2','module load hunter2']",
    "cluster.account=hunter2",
    "evaluation.cache=/home/hunter2",
]


@pytest.mark.parametrize(
    "overrides",
    [
        PRIVATE,
        [*PRIVATE[1:], "data.shards=pipe:curl -H 'X-Key: hunter2' h/{}"],
        ["+data.mixture={https://hunter2@h: 1, https://me:hunter2@h: 2}"],
    ],
)
def test_what_others_read_holds_no_secrets(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*TINY, "engine=plain", "paths.runs=/home/hunter2", *overrides])
    folder = run_directory(tmp_path / "run", config)
    export.export(folder, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "hunter2" not in json.dumps(file.metadata())
    assert "hunter2" not in (tmp_path / "model.yaml").read_text(encoding="utf-8")
    page = report.write(RunDir(folder)).read_text(encoding="utf-8")
    assert "hunter2" not in page
    assert "train.batch" in page
    again = ggcn.load(tmp_path / "model.safetensors").config
    assert list(again.data.mixture.values()) == list(config.data.mixture.values())
    for name in ("model", "train", "engine", "seed", "lanes"):
        assert getattr(again, name) == getattr(config, name)
