"""Features are made once per data set and network, and damage to what is kept never shows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ggcn.evaluation import cache as caching
from ggcn.evaluation.cache import Cache

PIXELS = torch.arange(10 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(10, 3, 4, 4)


class Maker:
    """Features that can be counted."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return pixels.float().flatten(1)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "PART", 4)


def test_what_is_known_is_not_made_again(tmp_path: Path) -> None:
    made = Maker()
    first = Cache(tmp_path).features("net/data", PIXELS, made)
    again = Cache(tmp_path).features("net/data", PIXELS, made)
    assert torch.equal(first, PIXELS.float().flatten(1))
    assert torch.equal(first, again)
    assert made.seen == 10
    Cache(tmp_path).features("net/other", PIXELS, made)
    Cache(tmp_path).features("other/data", PIXELS, made)
    assert made.seen == 30


@pytest.mark.parametrize("harm", [lambda data: data[:-3], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_part_is_made_again_alone(tmp_path: Path, harm) -> None:
    made = Maker()
    first = Cache(tmp_path).features("net/data", PIXELS, made)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    files[1].write_bytes(harm(files[1].read_bytes()))
    assert torch.equal(Cache(tmp_path).features("net/data", PIXELS, made), first)
    assert made.seen == 14


def test_a_death_halfway_keeps_whole_parts_only(tmp_path: Path) -> None:
    made = Maker()

    def dying(pixels: Tensor) -> Tensor:
        if made.seen == 8:
            raise KeyboardInterrupt
        return made(pixels)

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).features("net/data", PIXELS, dying)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    Cache(tmp_path).features("net/data", PIXELS, made)
    assert made.seen == 10
