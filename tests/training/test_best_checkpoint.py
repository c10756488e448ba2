"""Which checkpoint is the best: by FID, or by how well the regression fits images that were never trained on."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers import TINY, call

from ggcn.config.compose import compose
from ggcn.errors import UserError
from ggcn.run import checkpoint
from ggcn.sampling.sampler import load

OVERRIDES = [
    *TINY,
    "model=ggcn",
    "model.grids=[4,16]",
    "checkpoint.best_by=r2_heldout",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "log.r2_every=3",
    "run=fit",
]


@pytest.fixture(scope="module")
def split_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the demo faces at 16 px, a fifth of them held out."""
    out = tmp_path_factory.mktemp("shards") / "faces"
    made = call("tools/make_shards.py", "demo:faces", out, "--size", 16, "--holdout", 0.2)
    assert made.returncode == 0, made.stderr
    return out


def launch(runs: Path, shards: Path, *overrides: str) -> None:
    ended = call(
        "cluster/launch.py",
        "-m",
        "local",
        *OVERRIDES,
        f"data.shards={shards}",
        f"paths.runs={runs}",
        *overrides,
    )
    assert ended.returncode == 0, ended.stderr


def held_out(run: Path) -> dict[int, float]:
    """Mean over grids of r2_heldout by step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        line["step"]: fmean(value for name, value in line.items() if name.startswith("r2_heldout/"))
        for line in lines
        if "r2_heldout/16" in line
    }


def test_the_best_by_held_out_images_is_kept_over_a_restart(split_faces: Path, tmp_path: Path) -> None:
    launch(tmp_path, split_faces, "train.steps=6")
    run, root = tmp_path / "fit", tmp_path / "fit/checkpoints"
    assert sorted(held_out(run)) == [3, 6]
    best = checkpoint.best(root) or {}
    assert best["measured"].startswith("mean R^2 over grids, ")
    assert (root / best["checkpoint"]).is_dir()
    times = [grid.steps * grid.step_size for grid in load(run, step=6).grids]
    assert times == pytest.approx(checkpoint.meta(root / checkpoint.name(6))["sampling"]["time"] * 2)
    if best["checkpoint"] == checkpoint.name(6):
        assert best["r2_heldout"] == pytest.approx(held_out(run)[6], rel=1e-5)
    better = {**best, "checkpoint": checkpoint.name(6), "r2_heldout": 2.0}
    (root / "best").write_text(json.dumps(better))
    launch(tmp_path, split_faces, "train.steps=10")
    assert checkpoint.best(root) == better
    assert checkpoint.steps(root) == [10, 6]  # keep=1: the older one stays as the best
    (root / "best").unlink()
    launch(tmp_path, split_faces, "train.steps=11")  # measures the checkpoint that it resumes from, too
    assert (checkpoint.best(root) or {})["r2_heldout"] <= max(held_out(run).values()) + 1


def test_a_higher_fit_is_better_and_a_lower_fid(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / checkpoint.name(step)).mkdir()
    assert checkpoint.record_best(tmp_path, 1, 0.2, "how", by="r2_heldout")
    assert not checkpoint.record_best(tmp_path, 2, 0.1, "how", by="r2_heldout")
    assert not checkpoint.record_best(tmp_path, 2, float("nan"), "how", by="r2_heldout")
    assert checkpoint.record_best(tmp_path, 2, 0.3, "how", by="r2_heldout")
    assert checkpoint.best(tmp_path) == {
        "checkpoint": checkpoint.name(2),
        "r2_heldout": 0.3,
        "measured": "how",
    }
    assert checkpoint.record_best(tmp_path, 1, 20.0)  # the setting has changed
    assert not checkpoint.record_best(tmp_path, 2, 30.0)
    assert checkpoint.record_best(tmp_path, 3, 10.0)
    assert checkpoint.best(tmp_path) == {"checkpoint": checkpoint.name(3), "fid": 10.0}


def test_without_held_out_images_or_a_regression_it_is_one_sentence(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="needs model.flow.objective=transport: contrastive has no regression"
    ):
        compose([*TINY, "model=ggcn_contrastive", "checkpoint.best_by=r2_heldout"])
    ended = call(
        "cluster/launch.py", "-m", "local", *OVERRIDES, f"data.shards={faces}", f"paths.runs={tmp_path}"
    )
    assert ended.returncode != 0
    assert "needs held-out images" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "fit").exists()


def test_an_adapted_augmentation_goes_on_where_it_stopped(split_faces: Path, tmp_path: Path) -> None:
    settings = [f"train.augmentation.{setting}" for setting in ("probability=0.5", "adapt_every=2", "rate=5")]
    for run, steps in (("once", 9), ("twice", 5), ("twice", 9)):
        launch(
            tmp_path, split_faces, f"train.steps={steps}", f"run={run}", "train.energy.warmup=1", *settings
        )
    once, twice = (probabilities(tmp_path / run) for run in ("once", "twice"))
    assert len(set(once.values())) > 2
    assert once == twice
    ends = [tmp_path / run / "checkpoints/step_00000009/ema.pt" for run in ("once", "twice")]
    first, second = (torch.load(end, weights_only=True)["energies"] for end in ends)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def probabilities(run: Path) -> dict[int, float]:
    """The probability of augmentation by step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["augmentation"] for line in lines if "augmentation" in line}
