"""Manifests: whatever a server or a file says, nothing in it is used before it was checked."""

# mypy: allow-untyped-defs

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shard_files as shards

from ggcn.config.data import DataConfig
from ggcn.data import index_file, manifest, manifest_file, remote, stream
from ggcn.data.manifest import Shards
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError

REPO = Path(__file__).parents[2]
HASH = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards.build(tmp_path / "set", [13, 20])
    return tmp_path / "set"


def saved(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / manifest.NAME).read_text())
    return value


def changed(value: dict[str, Any], path: str, new: Any) -> str:
    """The manifest as text with the value at a dotted path replaced."""
    place: Any = value
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        place = place[key]
    place[last] = new
    return json.dumps(value)


NAMES = [
    "../000000.tar",
    "/etc/passwd.tar",
    ".hidden.tar",
    "-rf.tar",
    "a;touch owned.tar",
    "a b.tar",
    "$(id).tar",
    "a\n.tar",
    "a.tar\n",
    "a\0.tar",
    "a\\b.tar",
    "\u0661.tar",
    "\x1b[2J.tar",
    "000000",
    "",
    "x" * 200 + ".tar",
    7,
    None,
    ["000000.tar"],
]
DIGESTS = ["../../victim", "A" * 64, "0" * 63, "0" * 65, "\u0661" * 64, HASH + "\n", "", None, 0]
COUNTS = [0, -1, True, 1.0, 1e400, float("nan"), "13", None, [], 10**30, 2**63, 10**9]
WRONG = [
    *(("shards.0.name", name) for name in NAMES),
    *(("shards.0.sha256", digest) for digest in DIGESTS),
    *(("shards.0.samples", count) for count in COUNTS),
    *(("shards.0.bytes", count) for count in COUNTS),
    *(("samples", count) for count in COUNTS),
    *(("size", size) for size in [0, -8, True, 8.0, None, 10**6, "8"]),
    *(("channels", channels) for channels in [0, 2, 4, True, 3.0, None, [3]]),
    *(("extension", extension) for extension in ["tar", "PNG", "", "../png", None, ["png"], {}]),
    *(("rejected", rejected) for rejected in [-1, True, None, 0.5]),
    *(
        ("index.name", name)
        for name in ["../index.bin", "/index.bin", ".bin", "a;b.bin", "index.bin\n", 3, None]
    ),
    *(("index.sha256", digest) for digest in DIGESTS),
    *(("index.bytes", size) for size in [0, 12, -1, True, 396.0, None]),
    *(
        ("options", options)
        for options in [None, [], {"crop": "\x1b]0;x\x07"}, {"\x1b": 1}, {"a": [{"b": "\n"}]}]
    ),
    ("options", {"a": 1e400}),
    ("options", {"a": "x" * 10**5}),
    ("shards.0.name", "000001.tar"),
    ("shards.0", ["000000.tar"]),
    ("shards.0", {}),
    ("shards", {}),
    ("shards", []),
    ("shards", "000000.tar"),
    ("index", None),
    ("index", [1]),
    ("extra", 1),
    ("shards.0.extra", 1),
    ("version", 0),
    ("version", True),
    ("version", "2"),
    ("version", 10**30),
]


@pytest.mark.parametrize(("path", "new"), WRONG)
def test_values_that_make_shards_does_not_write_are_refused_in_one_line(folder, path, new):
    with pytest.raises(UserError) as refused:
        manifest_file.parse(changed(saved(folder), path, new), "http://host/manifest.json")
    assert str(refused.value).startswith("http://host/manifest.json is ")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"text"',
        "7",
        "null",
        "{",
        "[" * 10**5,
        '{"version": 2, "options": ' + '{"a": ' * 10**5,
        '{"version": 2, "version": 2}',
        '{"version": 1' + "0" * 10**4 + "}",
        b"\xff\xfe\x00",
        b"\x1f\x8b\x08\x00",
    ],
    ids=range(12),
)
def test_text_that_is_no_manifest_is_refused_in_one_line(text):
    with pytest.raises(UserError) as refused:
        manifest_file.parse(text, "http://host/manifest.json")
    assert str(refused.value).startswith("http://host/manifest.json is damaged")
    assert str(refused.value).isprintable()


def test_a_duplicate_key_is_refused(folder):
    text = (
        (folder / manifest.NAME)
        .read_text()
        .replace('"name": "000000.tar"', '"name": "a.tar", "name": "b.tar"')
    )
    with pytest.raises(UserError, match="a key comes twice"):
        manifest_file.parse(text, "x")


def test_a_newer_version_requires_a_newer_program(folder):
    with pytest.raises(UserError, match="update the program"):
        manifest_file.parse(changed(saved(folder), "version", 3), "x")


def test_what_is_saved_is_read_back(folder):
    data = manifest_file.load(folder)
    assert [shard.name for shard in data.shards] == ["000000.tar", "000001.tar"]
    assert data.shards[1] == shards.describe(folder / "000001.tar")
    assert data.counts.tolist() == [13, 20]
    index = index_file.open_index(data)
    expected = np.concatenate([shards.ranges_in(folder / shard.name) for shard in data.shards])
    assert (index == expected).all()
    assert not index.flags.writeable
    text = json.dumps([8, 3, [(shard.samples, shard.sha256) for shard in data.shards]])
    assert data.hash == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_an_index_of_the_wrong_size_is_found_before_training(folder, damage):
    index = folder / index_file.INDEX
    if damage == "missing":
        index.unlink()
    else:
        os.truncate(index, 33 * 12 + (12 if damage == "long" else -12))
    with pytest.raises(UserError, match=r"index\.bin (is missing|has \d+ bytes).*build the shards again"):
        stream.build(DataConfig(str(folder), workers=0), Lanes(4), 1, 8)


@pytest.mark.parametrize(
    ("field", "value"), [("offset", 0), ("offset", 2**63), ("offset", 10**9), ("size", 0)]
)
def test_an_index_altered_in_place_ends_the_run_when_it_is_used_or_before_it_starts(folder, field, value):
    places = np.fromfile(folder / index_file.INDEX, index_file.BYTE_RANGE)
    places[field] = value
    places.tofile(folder / index_file.INDEX)
    with pytest.raises(UserError, match=r"outside its shard .*00000\d\.tar"):
        next(stream.build(DataConfig(str(folder), workers=0), Lanes(4), 1, 8))
    with pytest.raises(UserError, match=r"index .* altered \(sha256 differs\)"):
        stream.build(DataConfig(str(folder), workers=0, verify="full"), Lanes(4), 1, 8)


# the first version


def batches(folder: Path) -> list[list[int]]:
    with stream.build(DataConfig(str(folder), workers=0), Lanes(4), 1, 8) as made:
        return [[*next(made).ids.tolist(), int(next(made).images.sum())] for _ in range(10)]


def test_a_manifest_of_the_first_version_gives_the_same_data_and_is_converted_in_one_command(folder):
    expected, before, tars = (
        batches(folder),
        manifest_file.load(folder),
        [p.read_bytes() for p in folder.glob("*.tar")],
    )
    shards.first_version(folder)
    old = manifest_file.load(folder)
    assert (old.index, old.hash, old.shards) == (None, before.hash, before.shards)
    assert batches(folder) == expected
    for output in ("manifest converted", "manifest is of this version already"):
        command = [sys.executable, REPO / "tools/verify_shards.py", folder, "--convert"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{folder}: {output}\n"
        assert manifest_file.load(folder) == before
        assert [p.read_bytes() for p in folder.glob("*.tar")] == tars
        assert batches(folder) == expected


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("offsets", [0] * 13),
        ("offsets", [512]),
        ("offsets", [-1] * 13),
        ("offsets", [10**30] * 13),
        ("offsets", [5.5] * 13),
        ("sizes", [0] * 13),
        ("sizes", [True] * 13),
        ("sizes", [10**12] * 13),
        ("sizes", "x" * 13),
    ],
)
def test_byte_ranges_of_the_first_version_must_lie_in_their_shards(folder, key, new):
    shards.first_version(folder)
    with pytest.raises(UserError, match="x is damaged"):
        manifest_file.parse(changed(saved(folder), f"shards.0.{key}", new), "x")


# what a server's manifest could do


def test_a_digest_cannot_direct_the_cache_outside_its_folder(folder, tmp_path):
    (tmp_path / "victim").write_text("mine")
    text = changed(saved(folder), "shards.0.sha256", "../victim")
    (folder / manifest.NAME).write_text(text)
    with shards.serve(folder) as server, pytest.raises(UserError, match="is no sha256"):
        stream.build(DataConfig(server.url, workers=0, cache_dir=str(tmp_path / "cache")), Lanes(4), 1, 8)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "command", ["pipe:cat {folder}", "pipe:cat {folder}/{{}}", "pipe:sh -c 'cat {folder}/{{}}'"]
)
def test_a_shards_name_cannot_run_in_the_shell_of_a_pipe(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(command.format(folder=folder), workers=0, allow_pipe=True, cache_dir="cache")
    with stream.build(config, Lanes(4), 1, 8) as made:
        assert len(next(made).ids) == 4
    text = changed(saved(folder), "shards.0.name", "x;touch owned;.tar")
    (folder / manifest.NAME).write_text(text)
    with pytest.raises(UserError, match="is no plain name of a tar"):
        stream.build(config, Lanes(4), 1, 8)
    assert not Path("owned").exists()


def test_names_are_quoted_in_a_command():
    assert remote.join_url("pipe:cat /x", "a;b") == "pipe:cat /x/'a;b'"
    assert remote.join_url("pipe:cat /x/{}", "a;b") == "pipe:cat /x/'a;b'"


def test_a_large_data_set_takes_little_memory_and_no_more_for_its_samples(tmp_path):
    """20,000 shards of 1000 samples; their index is a file of holes, which no process reads as a whole."""
    names = [f"{number:06d}.tar" for number in range(20_000)]
    digests = [f"{number:064x}" for number in range(20_000)]
    table = Shards.from_columns(names, [1000] * 20_000, [2**21] * 20_000, digests)
    samples, size = 20_000 * 1000, 20_000 * 2**21
    index = manifest.IndexFile(index_file.INDEX, samples * index_file.BYTE_RANGE.itemsize, "0" * 64)
    with (tmp_path / index_file.INDEX).open("wb") as file:
        file.truncate(index.bytes)
    manifest.Manifest(64, 3, "png", samples, size, {}, 0, table, index, tmp_path).save(tmp_path)
    tracemalloc.start()
    data = manifest_file.load(tmp_path)
    lookup = ShardIndex([ShardFolder(str(tmp_path), data)], DataConfig())
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5e6
    assert peak < 30e6
    assert lookup.remote(19_999) == (f"{tmp_path}/019999.tar", 2**21, digests[-1])
    assert index_file.open_index(data).shape == (samples,)
