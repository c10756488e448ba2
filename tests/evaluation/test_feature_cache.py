"""Features are made once per data set and network, and damage to what is kept never shows."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from ggcn.evaluation import feature_cache
from ggcn.evaluation.feature_cache import FeatureCache

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
    monkeypatch.setattr(feature_cache, "FILE_IMAGES", 4)


def test_what_is_known_is_not_made_again(tmp_path: Path) -> None:
    made = Maker()
    first = FeatureCache(tmp_path).features("net/data", PIXELS, made)
    again = FeatureCache(tmp_path).features("net/data", PIXELS, made)
    assert torch.equal(first, PIXELS.float().flatten(1))
    assert torch.equal(first, again)
    assert made.seen == 10
    FeatureCache(tmp_path).features("net/other", PIXELS, made)
    FeatureCache(tmp_path).features("other/data", PIXELS, made)
    assert made.seen == 30


@pytest.mark.parametrize("harm", [lambda data: data[:-3], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_part_is_made_again_alone(tmp_path: Path, harm) -> None:
    made = Maker()
    first = FeatureCache(tmp_path).features("net/data", PIXELS, made)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    files[1].write_bytes(harm(files[1].read_bytes()))
    assert torch.equal(FeatureCache(tmp_path).features("net/data", PIXELS, made), first)
    assert made.seen == 14


def test_a_death_halfway_keeps_whole_parts_only(tmp_path: Path) -> None:
    made = Maker()

    def dying(pixels: Tensor) -> Tensor:
        if made.seen == 8:
            raise KeyboardInterrupt
        return made(pixels)

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path).features("net/data", PIXELS, dying)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    FeatureCache(tmp_path).features("net/data", PIXELS, made)
    assert made.seen == 10


def test_a_cache_that_cannot_be_used_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken/net/data-0.safetensors/inside").mkdir(parents=True)
    made = Maker()
    for folder in (tmp_path / "file", tmp_path / "taken", None):
        features = FeatureCache(folder, "some.key").features("net/data", PIXELS, made)
        assert torch.equal(features, PIXELS.float().flatten(1))
    monkeypatch.setattr(feature_cache, "save_file", full)
    FeatureCache(tmp_path / "full", "some.key").features("net/data", PIXELS, made)
    assert made.seen == 40
    assert [path for path in (tmp_path / "full").rglob("*") if path.is_file()] == []
    assert len(caplog.messages) == 4  # one per folder
    assert all("some.key" in line for line in caplog.messages)
    assert "No space left on device" in caplog.messages[-1]


def test_where_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert feature_cache.default_folder() == tmp_path / ".cache/ggcn/features"
    for word in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", word)
        assert feature_cache.default_folder() == tmp_path / ".cache/ggcn/features"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert feature_cache.default_folder() == Path("/elsewhere/ggcn/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert feature_cache.default_folder() is None
