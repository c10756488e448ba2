"""Evaluation while a run trains, through the front door: two ranks, real shards, the real feature network."""

import json
from pathlib import Path

import pytest
from helpers import TINY, call

from ggcn.evaluation import samples
from ggcn.evaluation.evaluator import Evaluator
from ggcn.evaluation.feature_cache import FeatureCache
from ggcn.evaluation.features import network
from ggcn.evaluation.images import read
from ggcn.run import checkpoint
from ggcn.sampling.sampler import load

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite_pytorch")

EVERY = ["evaluation.every=4", "evaluation.count=24", "evaluation.real=40"]


@pytest.fixture
def overrides(faces: Path, tmp_path: Path) -> list[str]:
    """A run of eight steps that is evaluated twice."""
    cache = f"evaluation.cache={tmp_path / 'cache'}"
    return [
        *TINY,
        *EVERY,
        cache,
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        "run=scored",
        "train.steps=8",
    ]


def test_a_run_is_measured_on_its_way_and_its_best_checkpoint_is_kept(
    overrides: list[str], faces: Path, tmp_path: Path
) -> None:
    ended = call("cluster/launch.py", "-m", "local", *overrides, "checkpoint.keep=1")
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "scored"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    best = min(lines, key=lambda line: line["fid"])
    noted = checkpoint.best(run / "checkpoints")
    assert noted is not None
    assert (noted["checkpoint"], noted["fid"]) == (checkpoint.name(best["step"]), best["fid"])
    assert best["best"]
    assert (run / "report.html").is_file()
    assert lines[-1]["fid"] == pytest.approx(by_hand(run, faces, tmp_path), rel=1e-3)


def by_hand(run: Path, faces: Path, tmp_path: Path) -> float:
    """The FID of the last checkpoint's samples, drawn by one process."""
    judge = Evaluator(network("efficientnet-lite2"), read(faces, 16, 40), FeatureCache(tmp_path / "other"))
    return judge.evaluate(samples.draw_samples(load(run), 24, seed=0).ends)["fid"]


def test_evaluation_does_not_change_the_run(overrides: list[str], tmp_path: Path) -> None:
    for name, every in (("with", 4), ("without", 0)):
        ended = call(
            "cluster/launch.py", "-m", "local", *overrides, f"run={name}", f"evaluation.every={every}"
        )
        assert ended.returncode == 0, ended.stderr
    ours, theirs = (tmp_path / name / "checkpoints/step_00000008" for name in ("with", "without"))
    of = [checkpoint.meta(folder)["files"] for folder in (ours, theirs)]
    assert of[0].keys() == of[1].keys()
    assert all(of[0][path]["sha256"] == of[1][path]["sha256"] for path in of[0])


def test_a_resumed_run_measures_again_what_it_trains_again(overrides: list[str], tmp_path: Path) -> None:
    assert call("cluster/launch.py", "-m", "local", *overrides).returncode == 0
    run = tmp_path / "scored"
    before = (run / "evaluations.jsonl").read_text().splitlines()
    (run / "checkpoints/step_00000008/ema.pt").write_bytes(b"damaged")
    ended = call("cluster/launch.py", "-m", "local", *overrides)
    assert ended.returncode == 0, ended.stderr
    after = (run / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["fid"] for line in after] == [json.loads(line)["fid"] for line in before]


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(overrides: list[str], tmp_path: Path) -> None:
    assert call("cluster/launch.py", "-m", "local", *overrides).returncode == 0
    path = tmp_path / "scored/evaluations.jsonl"
    before = path.read_text().splitlines()
    path.write_text(before[0] + "\n")
    ended = call("cluster/launch.py", "-m", "local", *overrides, "train.steps=9")
    assert ended.returncode == 0, ended.stderr
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in after] == [4, 8, 9]
    assert after[1]["fid"] == json.loads(before[1])["fid"]


def test_a_mixture_has_no_one_set_to_compare_with(overrides: list[str], faces: Path) -> None:
    mixed = ["data.shards=", f"+data.mixture={{{faces}: 1.0}}"]
    ended = call("cluster/launch.py", "-m", "local", *(w for w in overrides if "shards" not in w), *mixed)
    assert ended.returncode != 0
    assert "evaluation.every=4 compares samples with the images of data.shards" in ended.stderr
