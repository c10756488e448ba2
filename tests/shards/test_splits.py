"""The held-out set is complete, disjoint and stable."""

from pathlib import Path

import pytest
from builds import draw, make, noise, stored

from ggcn.errors import UserError


def split(source: Path, out: Path) -> tuple[set[str], set[str]]:
    """Builds a grid with a held-out set -> the images on either side."""
    make(source, out, "--size", 8, "--crop", "grid", "--holdout", 0.25)
    train, held = ([name for name, _, _ in stored(folder)] for folder in (out, out / "holdout"))
    assert len(train) + len(held) == 17 * len({*train, *held})  # 5 x 3 squares and 2 x 1 of the half scale
    return set(train), set(held)


def test_the_split_is_complete_disjoint_and_stable(image_folder: Path, tmp_path: Path) -> None:
    train, held = split(image_folder, tmp_path / "out")
    assert train | held == {path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png")}
    assert not train & held
    assert 4 <= len(held) <= 16
    for seed in range(10):
        draw(image_folder / "birds" / f"{seed}.png", noise(seed))
    more_train, more_held = split(image_folder, tmp_path / "more")
    assert train < more_train
    assert held < more_held


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", noise(1))
    with pytest.raises(UserError, match=r"of 1 images none would be in .*holdout"):
        make(tmp_path / "in", tmp_path / "out", "--size", 8, "--holdout", 0.001)
    assert not (tmp_path / "out").exists()
