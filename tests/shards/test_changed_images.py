"""Images that change after their shards were built: the result is that of a new build."""

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import tree
from PIL import Image

from ggcn.cli import make_shards
from ggcn.data import manifest, manifest_file
from ggcn.errors import UserError
from ggcn.shards import assembly, build, build_spec, image_file, sources

COUNT = 24


def paint(path: Path, red: int) -> None:
    """An image of one colour; all have the same number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (red, 30, 90)).save(path)


def make(*arguments: object) -> int:
    """make_shards in this process, on one worker."""
    return make_shards.main([*map(str, arguments), "--size", "8", "--workers", "1"])


def written(out: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*.tar")}


@pytest.fixture
def image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images that were written long enough ago to have stamps."""
    for index in range(COUNT):
        paint(tmp_path / "in" / f"{index}.ppm", index)
    settle(monkeypatch)
    return tmp_path / "in"


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files look ten seconds older."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10_000_000_000)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of images that the main process reads; see `in_process`."""
    names: list[str] = []
    read = sources.read
    monkeypatch.setattr(sources, "read", lambda place, entry: names.append(entry.name) or read(place, entry))
    monkeypatch.setattr(
        build.Pool, "run", lambda self, function, tasks, bar: [function(one) for one in tasks]
    )
    return names


def edit(path: Path) -> None:
    """Other pixels."""
    paint(path, 200)


def edit_with_old_time(path: Path) -> None:
    """Other pixels, with the times of the old file, as cp -p and touch -r give them."""
    status = path.stat()
    paint(path, 200)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_with_old_time(path: Path) -> None:
    """Another file in its place, with its times, as rsync -a does."""
    status = path.stat()
    paint(path.with_name("new.ppm"), 200)
    os.utime(path.with_name("new.ppm"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_name("new.ppm").replace(path)


def swap(path: Path) -> None:
    """The file and its neighbour exchange their names."""
    other, aside = path.with_name("4.ppm"), path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def repaint_larger(path: Path) -> None:
    """Other pixels, and more of them."""
    Image.new("RGB", (30, 30), (200, 30, 90)).save(path)


def lead_elsewhere(path: Path) -> None:
    """A symbolic link to another image of the same size takes its place."""
    paint(path.parents[1] / "elsewhere.ppm", 200)
    path.unlink()
    path.symlink_to(path.parents[1] / "elsewhere.ppm")


EDITS = [edit, edit_with_old_time, replace_with_old_time, swap, repaint_larger, lead_elsewhere]


@pytest.mark.parametrize("change", EDITS)
@pytest.mark.parametrize("more", [[], ["--crop", "grid"], ["--holdout", "0.4"]])
def test_an_edited_image_is_noticed_and_its_shard_alone_is_built_again(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    more: list[str],
) -> None:
    out = tmp_path / "out"
    make(image_folder, out, "--shard-samples", 4, *more)
    before = written(out)
    change(image_folder / "3.ppm")
    capsys.readouterr()
    make(image_folder, out, "--shard-samples", 4, *more)
    printed = capsys.readouterr().out
    assert f"{2 if change is swap else 1} images changed since their shards were built" in printed
    make(image_folder, tmp_path / "fresh", "--shard-samples", 4, *more)
    assert tree(out) == tree(tmp_path / "fresh")
    if more == [] and change is not swap:
        assert "1 of 6 shards are built again" in printed
        assert sum(before[name] != when for name, when in written(out).items()) == 1
    capsys.readouterr()
    make(image_folder, out, "--shard-samples", 4, *more)
    assert "nothing to do" in capsys.readouterr().out


def test_images_that_did_not_change_are_not_read_again(
    image_folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    for more in ([], ["--crop", "grid"]):
        out = tmp_path / f"out{len(more)}"
        make(image_folder, out, *more)
        reads.clear()
        make(image_folder, out, *more)
        assert not reads
        edit(image_folder / "3.ppm")
        make(image_folder, out, *more)
        assert 1 <= len(set(reads)) < COUNT  # those of its shard


def test_a_copy_elsewhere_is_read_once_and_not_built_again(
    image_folder: Path, tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    make(image_folder, out)
    before = tree(out), written(out)
    shutil.copytree(image_folder, tmp_path / "copy")
    for expected in (COUNT, 0):
        reads.clear()
        capsys.readouterr()
        make(tmp_path / "copy", out)
        assert len(reads) == expected
        assert "nothing to do" in capsys.readouterr().out
    assert (tree(out), written(out)) == before


def test_files_written_a_moment_ago_are_compared_by_their_bytes(
    image_folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one advance of the clock a second edit would leave the same times."""
    monkeypatch.setattr(time, "time_ns", lambda: (image_folder / "0.ppm").stat().st_ctime_ns)
    make(image_folder, tmp_path / "out")
    reads.clear()
    make(image_folder, tmp_path / "out")
    assert len(reads) == COUNT


def test_without_extended_attributes_images_are_only_read_again(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    monkeypatch.setattr(os, "getxattr", refused)
    make(image_folder, tmp_path / "out")
    edit_with_old_time(image_folder / "3.ppm")
    make(image_folder, tmp_path / "out")
    make(image_folder, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_an_edit_between_a_stopped_build_and_the_next_is_noticed(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(image_folder, out, "--shard-samples", 4)
    (out / manifest.NAME).unlink()
    (out / "000002.json").unlink()
    edit(image_folder / "3.ppm")
    edit(image_folder / "9.ppm")
    make(image_folder, out, "--shard-samples", 4)
    make(image_folder, tmp_path / "fresh", "--shard-samples", 4)
    assert tree(out) == tree(tmp_path / "fresh")


def test_several_sizes_notice_an_edit(image_folder: Path, tmp_path: Path) -> None:
    for out in ("out", "fresh"):
        make_shards.main([str(image_folder), str(tmp_path / "out"), "--size", "8,16", "--workers", "2"])
        edit(image_folder / "3.ppm")
        make_shards.main([str(image_folder), str(tmp_path / out), "--size", "8,16", "--workers", "2"])
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_edit_inside_an_archive_is_noticed(image_folder: Path, tmp_path: Path, kind: str) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), kind, image_folder))
    make(packed, tmp_path / "out")
    status = packed.stat()
    data = packed.read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:  # stored: this archive is written at once
            for path in sorted(image_folder.iterdir()):
                archive.writestr(path.name, path.read_bytes())
        make(packed, tmp_path / "out")  # same images in another archive
        edit(image_folder / "3.ppm")
        with zipfile.ZipFile(packed, "w") as archive:
            for path in sorted(image_folder.iterdir()):
                archive.writestr(path.name, path.read_bytes())
    else:
        packed.write_bytes(data.replace(bytes([3, 30, 90]) * 400, bytes([200, 30, 90]) * 400))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    edit(image_folder / "3.ppm")
    make(packed, tmp_path / "out")
    make(image_folder, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_rejected_image_that_was_repaired_is_accepted(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = (image_folder / "3.ppm").read_bytes()
    (image_folder / "3.ppm").write_bytes(bytes(len(complete)))
    out = tmp_path / "out"
    make(image_folder, out)
    assert json.loads((out / assembly.REJECTED).read_text())["source"] == "3.ppm"
    (image_folder / "3.ppm").write_bytes(complete)
    make(image_folder, out)
    assert not (out / assembly.REJECTED).exists()
    assert manifest_file.load(out).samples == COUNT
    make(image_folder, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_images_are_accepted_once_their_missing_package_is_installed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package is a stand-in that reads one kind of file: the real one need not be installed."""
    (image_folder / "3.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    out = tmp_path / "out"
    monkeypatch.setattr(image_file, "heif_is_installed", lambda: False)
    make(image_folder, out)
    assert "pip install pillow-heif" in (out / assembly.REJECTED).read_text()
    make(image_folder, out)
    assert "nothing to do" in capsys.readouterr().out
    monkeypatch.setattr(image_file, "heif_is_installed", lambda: True)
    monkeypatch.setattr(image_file.Image, "open", lambda file, formats: Image.new("RGB", (20, 20)))
    make(image_folder, out)
    assert "1 images that were rejected can be read now" in capsys.readouterr().out
    assert manifest_file.load(out).samples == COUNT + 1


@pytest.mark.parametrize("more", [[], ["--crop", "grid"]])
def test_the_largest_number_of_pixels_can_be_changed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    repaint_larger(image_folder / "3.ppm")
    out, limits = tmp_path / "out", (800, 900, 899)
    for index, limit in enumerate(limits):
        make(image_folder, out, "--max-pixels", limit, *more)
        printed = capsys.readouterr().out
        make(image_folder, tmp_path / str(index), "--max-pixels", limit, *more)
        assert tree(out) == tree(tmp_path / str(index))
        assert manifest_file.load(out).rejected == (limit < 900)
        if index == 1:
            assert "1 images that were rejected can be read now" in printed
        if index == 2:
            assert "1 images have more pixels than --max-pixels allows now" in printed
            capsys.readouterr()
            make(image_folder, out, "--max-pixels", 850, *more)
            assert "nothing to do" in capsys.readouterr().out


def test_shards_of_another_version_are_refused_with_the_reason(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out")
    path = tmp_path / "out" / build_spec.BUILD_SPEC
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"version": 1}))
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="another version of make_shards.*give another OUT"):
        make(image_folder, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        make(image_folder, tmp_path / "out")


def test_fewer_crops_than_before_leave_no_old_shard(image_folder: Path, tmp_path: Path) -> None:
    grid = ("--crop", "grid", "--scales", 1, "--shard-samples", 4)
    make(image_folder, tmp_path / "out", *grid)
    for index in range(0, COUNT, 2):
        Image.new("RGB", (10, 40), (index, 30, 90)).save(image_folder / f"{index}.ppm")  # as many bytes
    make(image_folder, tmp_path / "out", *grid)
    make(image_folder, tmp_path / "fresh", *grid)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
