"""What the launcher refuses of a config before a run begins, and what it shows of one."""

from pathlib import Path

import pytest
import shard_files as shards
from helpers import TINY, call

from ggcn.config.compose import compose
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import data_check
from ggcn.run.directory import RunDir


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 64 px."""
    folder = tmp_path_factory.mktemp("large") / "set"
    shards.build(folder, [200], size=64).save(folder)
    return folder


def composed(large: Path, *overrides: str) -> Config:
    return compose([f"data.shards={large}", "train.batch=16", "data.shuffle_block=16", *overrides])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [],
            r"images of 64 .*averaged down to the model's 32; add model.grids=\[16,32,64\] .* or model.grids=\[16,32\]",
        ),
        (
            ["model=gcn"],
            r"add model.grids=\[64\] to train at 64, or model.grids=\[32\] to train at 32 on purpose",
        ),
        (["model=multigrid"], r"add model.grids=\[4,16,64\] to train at 64, or model.grids=\[4,16,32\]"),
        (["data.crop=64"], r"crops of 64 pixels a side"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_larger_images_are_not_made_smaller_unasked(
    large: Path, overrides: list[str], sentence: str, remote: bool
) -> None:
    with pytest.raises(UserError, match=sentence):
        data_check.check(composed(large, *overrides), remote)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.grids=[16,32]"],
        ["model.grids=[16,64]"],
        ["data.size=32"],
        ["data.size=64", "model=gcn"],
        ["data.crop=32"],
        ["experiment=quickstart"],
    ],
)
def test_a_size_that_was_asked_for_is_taken(large: Path, overrides: list[str]) -> None:
    data_check.check(composed(large, *overrides, f"data.shards={large}"))


def test_a_run_from_before_the_size_was_asked_for_goes_on(large: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    config = composed(large, "model.grids=[16,32]")
    run.path.mkdir()
    run.freeze(config)
    run.config.write_text(
        run.config.read_text(encoding="utf-8").replace("  size: 32\n", ""), encoding="utf-8"
    )
    run.refuse_changes(config)


def test_shards_of_a_variable_that_only_the_nodes_have(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    config = compose(["data.shards=$NODE_DISK/shards"])
    data_check.check(config)
    with pytest.raises(UserError, match="needs the environment variable NODE_DISK, which is not set"):
        data_check.check(config, remote=True)


@pytest.mark.parametrize("mode", ["local", "slurm"])
def test_a_dry_run_shows_no_secrets(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    setup = "cluster.setup=['export HF_TOKEN=${oc.env:KEY}','module load cuda']"
    overrides = [
        *TINY,
        f"paths.runs={tmp_path}",
        "run=r",
        "data.shards=https://me:hunter2@h/x?sig=hunter2",
        setup,
    ]
    shown = call("cluster/launch.py", "-m", mode, "--dry-run", *overrides)
    assert shown.returncode == 0, shown.stderr
    assert "hunter2" not in shown.stdout + shown.stderr
    assert "module load cuda" in shown.stdout
    assert "shards: https://***@h/x?***" in shown.stdout


def test_a_command_needs_consent_on_the_command_line_that_launches(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    overrides = [
        *TINY,
        f"paths.runs={tmp_path}",
        "run=r",
        f"data.shards=pipe:touch {ran}; cat {{}}",
        "data.cache_dir=c",
    ]
    RunDir(tmp_path / "r").freeze(compose([*overrides, "data.allow_pipe=true"]))
    refused = call("cluster/launch.py", "-m", "local", *overrides)
    assert refused.returncode == 2
    assert "runs a shell command; if you trust it, set data.allow_pipe=true" in refused.stderr
    assert not ran.exists()
