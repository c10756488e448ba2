"""The command line of a run: what is typed is what is meant, or one sentence says why not."""

import os
from pathlib import Path

import pytest
from helpers import TINY

from ggcn.config.compose import compose, load, to_yaml
from ggcn.config.keys import flatten
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch.sweep import points

TEXTS = [
    "12e5",
    "83e2010",
    "5e40123",
    "2026_11_25",
    "1_000",
    "1e-3",
    "true",
    "null",
    "NaN",
    "007",
    "0x10",
    "nul",
    "2026-11-25",
    "a=b",
    "+1",
]
"""names of runs that YAML or Python take for something else"""
PATHS = [
    *TEXTS,
    "1:30",
    "it's",
    "a,b",
    "/data/set(1)/x y",
    "/data/ünï/日本",
    "[a",
    "{a",
    "# a",
    "a: b",
    "!a",
    "\udcff",
    "a\\b",
]


def frozen(config: Config, folder: Path) -> Config:
    """The config after a way through its file."""
    path = folder / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return load(path)


@pytest.mark.parametrize("name", TEXTS)
def test_a_name_stays_as_it_is_typed(name: str, tmp_path: Path) -> None:
    config = compose([*TINY, f"run={name}"])
    assert config.run == name
    assert frozen(config, tmp_path) == config


@pytest.mark.parametrize("path", PATHS)
def test_a_path_stays_as_it_is_typed(path: str, tmp_path: Path) -> None:
    config = compose([*TINY, f"data.shards={path}", f"cluster.partition={path}"])
    assert (config.data.shards, config.cluster.partition) == (path, path)
    assert frozen(config, tmp_path) == config


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["data.shards='a b'"], "data.shards", "a b"),
        ([r"data.shards='it\'s'"], "data.shards", "it's"),
        (["data.shards=a", "data.shards=b"], "data.shards", "b"),
        (["++train.steps=5"], "train.steps", 5),
        (["+train.steps=5"], "train.steps", 5),
        (["train={steps: 5}"], "train.steps", 5),
        (["lanes=08"], "lanes", 8),
        (["train.steps=${lanes}"], "train.steps", 8),
        (["cluster.nodes=[4,2]"], "cluster.nodes", [4, 2]),
        (
            ["cluster.sbatch=[--exclusive,--mail-user=me@x.org]"],
            "cluster.sbatch",
            ["--exclusive", "--mail-user=me@x.org"],
        ),
        (["cluster.setup=[12e5,true,it's]"], "cluster.setup", ["12e5", "true", "it's"]),
        (["cluster.setup=[\"module load a, b\",'c']"], "cluster.setup", ["module load a, b", "c"]),
        (["+data.mixture={12e5: 1, s3://b/ü(1): 2}"], "data.mixture", {"12e5": 1.0, "s3://b/ü(1)": 2.0}),
        (["+data.mixture={a:1}", "+data.mixture={b:1}"], "data.mixture", {"b": 1.0}),
        (["model=gcn", "model=wgcn"], "model.name", "wgcn"),
        (["model='gcn'"], "model.name", "gcn"),
        (["experiment=compare", "experiment=null"], "run", "unnamed"),
        (["experiment="], "run", "unnamed"),
    ],
)
def test_what_is_typed_is_what_is_meant(overrides: list[str], key: str, value: object) -> None:
    assert flatten(compose(overrides))[key] == value


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+train.stepz=100", "unknown key train.stepz; did you mean train.steps?"),
        ("++train.stepz=100", "unknown key train.stepz; did you mean train.steps?"),
        ("+experimentt=faces64", "unknown key experimentt; did you mean experiment?"),
        ("+train={stepz: 5}", "unknown key train.stepz"),
        ("+new.section=1", "unknown key new.section"),
        ("typed={}", "unknown key typed"),
        ("hydra.run.dir=/scratch", "hydra.run.dir has no effect here"),
        ("hydra/launcher=x", "hydra/launcher has no effect here"),
        ("~train.steps", "every key has a value"),
        ("model@other=gcn", "write model=gcn"),
        ("model=null", "there is no model=null; choose one of coopnets"),
        ("model=", "there is no model="),
        ("model=gcn,wgcn", "--sweep"),
        ("run=a,b", "--sweep"),
        ("seed=1,2", "--sweep"),
        ("model.chain_init=replay_buffer,noise", "--sweep"),
        ("train.steps=1e3", "train.steps=1e3 must be a whole number"),
        ("train.steps=true", "must be a whole number"),
        ("train.steps=", "must be a whole number"),
        ("seed=1.5", "must be a whole number"),
        ("lanes=٣", "must be a whole number"),
        ("cluster.ranks=x", "must be a whole number, or null"),
        ("train.energy.lr=fast", "must be a number"),
        ("data.flip=2", "must be true or false"),
        ("model.grids=[8,x]", "must be a list, as in [8,32]"),
        ("cluster.setup=module load", "must be a list of texts"),
        ("+data.mixture={a}", "needs a number as its weight"),
        ("train=5", "is a group of keys, such as train.steps"),
        ("paths={runs: 12e5}", "set paths.runs by an override of its own"),
        ("train.steps =5", "without blanks"),
        ("=5", "must begin with a key"),
        ("steps", "write KEY=VALUE"),
        ("data.cache_dir=${", "incomplete interpolation"),
        ("data.cache_dir=a\tb", "control character"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["data.shards=x", override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-x", ".x", "a b", "it's", "ünï", "a:b", "$(x)", "x" * 201]
)
def test_a_run_has_a_name_that_every_tool_takes(name: str) -> None:
    with pytest.raises(UserError, match="is no folder name"):
        compose([f"run={name}"])
    assert compose(["run=" + "x" * 200]).run == "x" * 200


def test_points_of_a_sweep_keep_their_texts(tmp_path: Path) -> None:
    result = points(
        [f"paths.runs={tmp_path}/set(1)", "run=12e5", "cluster.partition=1e5,'a,b',true", "seed=1,2"]
    )
    assert [config.cluster.partition for config in result] == ["1e5", "1e5", "a,b", "a,b", "true", "true"]
    assert [config.run for config in result][:3] == [
        "partition-1e5_seed-1",
        "partition-1e5_seed-2",
        "partition-a-b_seed-1",
    ]
    assert {config.paths.runs for config in result} == {str(tmp_path / "set(1)" / "12e5")}


@pytest.mark.parametrize("word", ["run=a,b", "paths.runs=a,b"])
def test_a_sweep_names_its_runs_itself(word: str) -> None:
    with pytest.raises(UserError, match="names the runs of its points itself"):
        points([word, "seed=1,2"])


def test_a_path_at_home_and_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FAST", "/fast")
    overrides = [
        "paths.runs=~/runs",
        "data.shards=file://~/faces",
        "data.cache_dir='$FAST/cache'",
        "evaluation.cache=${FAST}/f",
    ]
    config = compose([*overrides, "+data.mixture={~/a: 1, $FAST/b: 2, https://h/~/$FAST: 3}"])
    assert config.paths.runs == f"{tmp_path}/runs"
    assert config.data.shards == f"file://{tmp_path}/faces"
    assert (config.data.cache_dir, config.evaluation.cache) == ("/fast/cache", "/fast/f")
    assert list(config.data.mixture) == [f"{tmp_path}/a", "/fast/b", "https://h/~/$FAST"]
    assert compose(["data.shards=pipe:cat ~/$FAST/{}"]).data.shards == "pipe:cat ~/$FAST/{}"
    assert compose([r"data.shards=cash\$FAST"]).data.shards == "cash$FAST"
    with pytest.raises(UserError, match="the user nobody-here, who does not exist"):
        compose(["data.cache_dir=~nobody-here/x"])


def test_a_variable_means_what_it_does_where_the_ranks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggcn.config.interpolation import refuse_undefined, resolved

    monkeypatch.delenv("NODE_DISK", raising=False)
    config = compose(["data.cache_dir=$NODE_DISK/cache"])  # set on the compute nodes alone
    with pytest.raises(
        UserError, match="data.cache_dir=.* needs the environment variable NODE_DISK, which is not set"
    ):
        refuse_undefined(config)
    with pytest.raises(UserError, match="needs the environment variable NODE_DISK"):
        resolved(frozen(config, tmp_path), strict=True)
    monkeypatch.setenv("NODE_DISK", "/login")
    seen = frozen(compose(["data.cache_dir=$NODE_DISK/cache"]), tmp_path)
    monkeypatch.setenv("NODE_DISK", "/node")
    assert resolved(seen, strict=True).data.cache_dir == "/node/cache"
    with pytest.raises(UserError, match=r"paths.runs=\$NOT_SET/r needs the environment variable NOT_SET"):
        compose(["paths.runs=$NOT_SET/r"])
    assert "NODE_DISK" in os.environ


def test_secrets_of_the_environment_stay_out_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    monkeypatch.setenv("SEED", "7")
    setup = "cluster.setup=['export HF_TOKEN=${oc.env:KEY}']"
    config = compose(["data.shards=s3://${oc.env:KEY}@h/x", setup, "seed=${oc.env:SEED}"])
    assert config.data.shards == "s3://hunter2@h/x"
    assert config.cluster.setup == ["export HF_TOKEN=hunter2"]
    text = to_yaml(config)
    assert "hunter2" not in text
    assert "s3://${oc.env:KEY}@h/x" in text
    assert "seed: 7\n" in text  # what decides a run's numbers does not depend on where it goes on
    monkeypatch.delenv("KEY")
    loaded = frozen(config, tmp_path)  # a report of it needs no secret
    assert loaded.data.shards == "s3://${oc.env:KEY}@h/x"
    with pytest.raises(UserError, match="data.shards needs the environment variable KEY, which is not set"):
        compose(["data.shards=${oc.env:KEY}"])
    with pytest.raises(UserError, match="seed needs the environment variable KEY, which is not set"):
        compose(["seed=${oc.env:KEY}"])


@pytest.mark.parametrize(
    "text",
    [
        "run: ${oc.env:HOME}",
        "seed: ${oc.env:HOME}",
        "model: {name: '${oc.env:HOME}'}",
        "cluster: {nodes: ['${oc.env:HOME}']}",
        "run: !!python/object/apply:os.system ['touch ran']",
        "- a",
        "[",
        "just text",
        "run: ../../x",
        "data: 5",
        "data: ${oc.env:HOME}",
    ],
)
def test_a_config_from_somebody_else_is_only_data(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "hunter2")
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model", ["gcn", "wgcn", "frame", "coopnets", "shortrun", "igebm"])
def test_a_model_of_one_grid_takes_the_size_of_the_experiment(model: str) -> None:
    assert compose(["experiment=faces64", f"model={model}"]).model.grids == [64]
    assert compose([f"model={model}", "data.size=128"]).model.grids == [128]
    assert compose([f"model={model}"]).model.grids == [32]


@pytest.mark.parametrize(
    ("overrides", "grids"),
    [
        (["experiment=faces64"], [16, 32, 64]),
        (["experiment=faces64", "model=ggcn_contrastive"], [16, 32, 64]),
        (["experiment=faces64", "model=multigrid"], [4, 16, 64]),
        (["model=multigrid", "data.size=16"], [4, 16]),
        (["model=multigrid", "data.size=256"], [4, 16, 64, 256]),
        (["data.size=8"], [4, 8]),
        (["data.size=4"], [4]),
        (["experiment=scenes128"], [16, 32, 64, 128]),
        (["experiment=scenes128", "model=multigrid"], [8, 32, 128]),
        (["experiment=quickstart"], [16, 32]),
        (["data.size=16"], [8, 16]),
        (["experiment=faces64", "model.grids=[8,32]"], [8, 32]),
        (["experiment=faces64", "model=gcn", "model.grids=[16,64]"], [16, 64]),
        ([], [16, 32]),
    ],
)
def test_a_size_is_said_once(overrides: list[str], grids: list[int]) -> None:
    assert compose(overrides).model.grids == grids


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [(["data.size=48"], "power of two"), (["data.size=64", "model.grids=[16,32]"], "ends at another size")],
)
def test_a_size_that_cannot_be(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose(overrides)
