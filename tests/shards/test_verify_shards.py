"""Damage to shards is found and named; complete shards pass."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import shard_files as shards
from PIL import Image

from ggcn.cli import verify_shards
from ggcn.data import index_file, manifest, manifest_file
from ggcn.errors import UserError
from ggcn.shards import build, crop, sources, verify

TOOL = Path(__file__).parents[2] / "tools" / "verify_shards.py"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a held-out set and a slice without a readable image."""
    folder = tmp_path_factory.mktemp("source")
    for seed in range(30):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    for name in ("x", "y", "z"):
        (folder / f"{name}.png").write_text("not an image")
    out = tmp_path_factory.mktemp("shards")
    build.build(sources.find(str(folder)), {out: crop.Options(16, shard_samples=1, holdout=0.3)}, 2)
    return out


@pytest.fixture
def out(complete: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(complete, tmp_path / "out"))


def problems(out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines about problems; checks that the exit code fits."""
    code = verify_shards.main([str(out), *options])
    lines = [line for line in capsys.readouterr().out.splitlines() if " written " not in line]
    *result, total = lines
    assert code == (1 if result else 0)
    assert total.endswith(f"{len(result) or 'no'} problems")
    return result


def first(out: Path) -> Path:
    """A shard's tar."""
    return out / manifest_file.load(out).shards[0].name


def test_complete_shards_pass(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(out, capsys, "--decode") == []


def flip(path: Path, place: int) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_a_truncated_shard(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(first(out), 600)
    size, unreadable = problems(out, capsys)
    assert f"{first(out)}: 600 bytes instead of" in size
    assert "webdataset cannot read it" in unreadable


def test_a_flipped_bit_in_an_image(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(first(out), 512 + 100)
    (altered,) = problems(out, capsys)
    assert "altered" in altered
    altered, undecodable = problems(out, capsys, "--decode")
    assert "sample 0 cannot be decoded" in undecodable


def test_a_flipped_bit_in_a_header(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(first(out), 3)
    altered, unreadable = problems(out, capsys)
    assert "altered" in altered
    assert "bad checksum" in unreadable


def test_a_missing_shard_and_a_missing_sidecar(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = manifest_file.load(out / "holdout").shards
    gone = [out / "holdout" / shards[0].name, (out / "holdout" / shards[1].name).with_suffix(".json")]
    for path in gone:
        path.unlink()
    assert problems(out, capsys) == [f"{path}: missing" for path in gone]


def test_a_stray_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / ".tmp-7-000001.tar").touch()
    (out / "999999.tar").touch()
    assert problems(out, capsys) == [
        f"{out / name}: does not belong here" for name in (".tmp-7-000001.tar", "999999.tar")
    ]


def test_a_missing_index_is_named_and_a_manifest_of_the_first_version_needs_none(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards.first_version(out)
    assert problems(out, capsys) == []
    index = out / "holdout" / index_file.INDEX
    index.unlink()
    assert problems(out, capsys) == [f"{index}: missing"]


def test_wrong_offsets_in_the_index(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = np.fromfile(out / index_file.INDEX, index_file.BYTE_RANGE)
    places["offset"][0] += 1
    places.tofile(out / index_file.INDEX)
    index, sidecar, place = problems(out, capsys)
    assert f"{out / index_file.INDEX}: altered (sha256 differs)" in index
    assert "differs from the manifest in offsets" in sidecar
    assert "sample 0 is not where the index says" in place


def test_wrong_totals_in_the_manifest(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((out / manifest.NAME).read_text())
    value["samples"] += 1
    (out / manifest.NAME).write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"{out / manifest.NAME} is damaged .*totals"):
        verify_shards.main([str(out)])


def test_swapped_shards(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (out / shard.name for shard in manifest_file.load(out).shards[:2])
    one.rename(out / "aside")
    two.rename(one)
    (out / "aside").rename(two)
    result = "\n".join(problems(out, capsys))
    assert f"{one}: " in result
    assert f"{two}: " in result


def test_images_of_another_size(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((out / manifest.NAME).read_text())
    value["size"] = 32
    (out / manifest.NAME).write_text(json.dumps(value))
    assert problems(out, capsys) == []
    result = problems(out, capsys, "--decode")
    assert len(result) == value["samples"]
    assert "is 16 x 16 RGB instead of 32 x 32 RGB" in result[0]


def test_the_fix_that_it_names_works(
    complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (seed, 0, 0)).save(tmp_path / "in" / f"{seed}.png")
    source, options = sources.find(str(tmp_path / "in")), crop.Options(8)
    build.build(source, {tmp_path / "out": options}, 1)
    flip(first(tmp_path / "out"), 600)
    assert problems(tmp_path / "out", capsys)
    first(tmp_path / "out").unlink()
    build.build(source, {tmp_path / "out": options}, 1)
    assert problems(tmp_path / "out", capsys, "--decode") == []


def test_the_command_names_a_folder_without_shards(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no shards in ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("packing", ["gzip", "sparse", "long"])
def test_a_shard_takes_no_more_memory_than_its_bytes(
    packing: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, size = next(out.glob("0*.tar")), 64 << 20
    info = tarfile.TarInfo("000000000.png")
    info.size = size
    if packing == "gzip":
        shard.write_bytes(gzip.compress(info.tobuf() + bytes(size + 1024), 1))
    elif packing == "sparse":
        info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, 512)
        header[483:495] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        shard.write_bytes(header + bytes(512 + 1024))
    else:
        shard.write_bytes(info.tobuf() + bytes(size + 1024))
    tracemalloc.start()
    with pytest.raises(ValueError, match="compressed|larger than its space"):
        verify.read_tar(shard, "png", 10240)
    assert tracemalloc.get_traced_memory()[1] < size / 8
    tracemalloc.stop()
    assert any("webdataset cannot read it" in line for line in problems(out, capsys))
