"""A folder accepts only the build that it was made by, one at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from builds import make, tree

from ggcn.data import manifest
from ggcn.errors import UserError
from ggcn.shards import build_spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--size", 24], "--size 16 (now 24)"),
        (["--size", 16, "--crop", "top"], "--crop center (now top)"),
        (["--size", 16, "--format", "jpg"], "--format png (now jpg)"),
        (["--size", 16, "--shuffle-seed", 3], "--shuffle-seed 0 (now 3)"),
        (["--size", 16, "--shard-samples", 3], "--shard-samples default (now 3)"),
        (["--size", 16, "--holdout", 0.5], "--holdout 0.0 (now 0.5)"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    image_folder: Path, tmp_path: Path, change: list[object], named: str
) -> None:
    out = tmp_path / "out"
    make(image_folder, out, "--size", 16)
    before = tree(out)
    with pytest.raises(UserError) as error:
        make(image_folder, out, *change)
    assert named in str(error.value)
    assert "another OUT" in str(error.value)
    assert tree(out) == before


def test_a_changed_source_is_refused(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out", "--size", 16)
    (image_folder / "cats" / "0.png").rename(image_folder / "cats" / "renamed.png")
    with pytest.raises(UserError, match=r"another list of images \(40 images, now 40\)"):
        make(image_folder, tmp_path / "out", "--size", 16)


def test_a_foreign_folder_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        make(image_folder, image_folder, "--size", 16)
    assert len(tree(image_folder)) == 40


def test_two_builds_in_one_folder_are_refused(image_folder: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "out", "--size", 16)
    (tmp_path / "out" / manifest.NAME).unlink()
    with (tmp_path / "out" / build_spec.BUILD_SPEC).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another make_shards is running"):
            make(image_folder, tmp_path / "out", "--size", 16)


def test_two_builds_in_one_folder_are_refused_without_locks(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    make(image_folder, tmp_path / "out", "--size", 16)
    expected = tree(tmp_path / "out")
    (tmp_path / "out" / manifest.NAME).unlink()
    with (
        build_spec.build_lock(tmp_path / "out"),
        pytest.raises(UserError, match="another make_shards is running"),
    ):
        make(image_folder, tmp_path / "out", "--size", 16)
    make(image_folder, tmp_path / "out", "--size", 16)
    assert tree(tmp_path / "out") == expected
