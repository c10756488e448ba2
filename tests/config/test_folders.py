"""A folder of the user's own configs, next to those that come with the code."""

from pathlib import Path

import pytest
from helpers import TINY, call

from ggcn.config.compose import compose, load, to_yaml
from ggcn.config.folders import VARIABLE
from ggcn.errors import UserError


@pytest.fixture(params=["mine", "it's, mine (1) ü"])
def own(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a cluster and an experiment."""
    folder = tmp_path / request.param
    write(folder, "cluster/mysite", "partition: fast\ncpus_per_rank: 6\n")
    write(folder, "experiment/portraits", "# @package _global_\nrun: portraits\ntrain:\n  steps: 77\n")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def write(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_files_of_the_folder_are_chosen_like_the_shipped_ones(own: Path) -> None:
    config = compose(["cluster=mysite", "experiment=portraits", "model=gcn"])
    assert (config.cluster.partition, config.cluster.cpus_per_rank) == ("fast", 6)
    assert (config.run, config.train.steps, config.model.name) == ("portraits", 77, "gcn")


def test_of_two_files_with_one_name_that_of_the_user_counts(own: Path) -> None:
    write(own, "cluster/slurm", "partition: mine\n")
    assert compose(["cluster=slurm"]).cluster.partition == "mine"


def test_a_choice_that_does_not_exist_names_those_of_both_folders(own: Path) -> None:
    with pytest.raises(UserError, match="there is no cluster=nosuch; choose one of local, mysite, slurm"):
        compose(["cluster=nosuch"])


def test_a_frozen_config_needs_no_folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["cluster=mysite"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    monkeypatch.delenv(VARIABLE)
    assert load(path) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitoin: fast\n", "unknown key cluster.partitoin; did you mean cluster.partition?"),
        ("parallel: 4\n", "unknown key cluster.parallel; it is cluster.max_concurrent now"),
        ("max_concurrent: 0\n", r"cluster.max_concurrent=0 must lie in \[1, inf\]"),
        ("time_min: soon\n", "cluster.time_min"),
        ("partition: [\n", "mysite.yaml"),
    ],
)
def test_a_mistake_in_the_folder_is_one_sentence(own: Path, text: str, sentence: str) -> None:
    write(own, "cluster/mysite", text)
    with pytest.raises(UserError, match=sentence) as caught:
        compose(["cluster=mysite"])
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none does not exist; correct --config-dir or GGCN_CONFIG_DIR"):
        compose([])


def test_the_launcher_takes_the_folder_as_a_flag(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    overrides = [*TINY, "cluster=mysite", f"paths.runs={own}", "data.shards=https://h/x"]
    shown = call("cluster/launch.py", "--config-dir", own, "--dry-run", *overrides)
    assert shown.returncode == 0, shown.stderr
    assert "partition: fast" in shown.stdout
    assert call("cluster/launch.py", "--dry-run", *overrides).returncode == 2
