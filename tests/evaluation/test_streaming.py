"""Pictures that are read from their shards when they are needed are those that stay in memory."""

from pathlib import Path

import pytest
import torch

from ggcn.evaluation import images
from ggcn.evaluation.memorization import downscale
from ggcn.evaluation.pca_gaussian import pca_gaussian


def test_large_sets_give_the_same_pixels_a_few_at_a_time(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = images.read(faces, 16, 100)
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(images, "CHUNK_BYTES", 7 * 16 * 16 * kept.pixels.shape[1])
    lazy = images.read(faces, 16, 100)
    assert isinstance(lazy.pixels, images.LazyImages)
    assert (lazy.key, len(lazy), tuple(lazy.pixels.shape)) == (kept.key, 100, tuple(kept.pixels.shape))
    for size in (5, 7):
        parts = list(lazy.pixels.split(size))
        assert max(map(len, parts)) == size
        assert torch.equal(torch.cat(parts), kept.pixels[:])
    assert [len(part) for part in lazy.pixels.split(64)] == [64, 36]
    assert torch.equal(lazy.pixels[[3, 90]], kept.pixels[[3, 90]])
    assert torch.equal(lazy.pixels[::9], kept.pixels[::9])
    assert torch.equal(downscale(lazy.pixels), downscale(kept.pixels))
    assert torch.equal(torch.cat(list(images.batches(faces, 16, 100))), kept.pixels[:])
    assert torch.equal(pca_gaussian(lazy.pixels, 5, 8, 0), pca_gaussian(kept.pixels, 5, 8, 0))
