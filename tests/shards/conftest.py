"""Images for builds."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from builds import draw, noise


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 40 images, in two folders of one kind each."""
    for seed in range(40):
        draw(tmp_path / "in" / ("cats" if seed < 20 else "dogs") / f"{seed}.png", noise(seed))
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Suppresses Pillow's warnings about unusual metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
