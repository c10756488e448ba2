"""A run is the same run under another name and in another place."""

from pathlib import Path

import pytest

from ggcn.config.compose import compose, load
from ggcn.errors import UserError
from ggcn.run.directory import RunDir


def test_a_frozen_config_names_places_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(
        ["run=one", "data.cache_dir=../cache", "evaluation.weights=weights.pth", "data.shards=a"]
    )
    config.data.shards = ""
    config.data.mixture = {"a/faces": 3.0, "/b": 1.0, "https://x.org/c": 2.0, "file://d": 1.0}
    run = RunDir.of(config)
    run.freeze(config)
    frozen = load(run.config)
    faces, d = f"{tmp_path}/a/faces", f"{tmp_path}/d"
    assert frozen.data.mixture == {faces: 3, "/b": 1, "https://x.org/c": 2, d: 1}
    assert list(frozen.data.mixture) == [faces, "/b", "https://x.org/c", d]  # the order counts
    assert frozen.data.cache_dir == str(tmp_path.parent / "cache")
    assert frozen.evaluation.weights == f"{tmp_path}/weights.pth"
    assert frozen.paths.runs == f"{tmp_path}/runs"
    assert (frozen.data.shards, frozen.evaluation.cache) == ("", "")
    assert run.changes(config) == []


@pytest.mark.parametrize(
    "shards", ["s3://bucket/faces", "pipe:cat x/{}", "/abs/faces", "$SCRATCH/faces", "http://x/y"]
)
def test_what_is_no_relative_path_stays(tmp_path: Path, shards: str) -> None:
    args = [f"data.shards='{shards}'", "data.allow_pipe=true", "data.cache_dir=/c", f"paths.runs={tmp_path}"]
    config = compose(args)
    run = RunDir.of(config)
    run.freeze(config)
    assert load(run.config).data.shards == shards


def test_a_name_is_no_change_and_a_setting_is(tmp_path: Path) -> None:
    args = ["data.shards=shards", f"paths.runs={tmp_path}"]
    RunDir(tmp_path / "two").freeze(compose([*args, "run=one"]))
    RunDir(tmp_path / "two").refuse_changes(compose([*args, "run=two"]))
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        RunDir(tmp_path / "two").refuse_changes(compose([*args, "run=two", "seed=1"]))
