"""Statistics of energies."""

import pytest
import torch

from ggcn.evaluation import statistics


def normal(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_auroc_counts_pairs() -> None:
    low, high = torch.tensor([0.0, 1.0, 1.0, 3.0]), torch.tensor([1.0, 2.0])
    assert statistics.auroc(low, high) == (2.0 + 3.0) / 8
    assert statistics.auroc(low, low + 10) == 1
    assert statistics.auroc(low + 10, low) == 0
    assert statistics.auroc(low, low) == 0.5
    far = torch.tensor([1000.0, 1001.0])  # a sigmoid would call them equal
    assert statistics.auroc(far[:1], far[1:]) == 1


def test_histograms_share_their_bins_and_lose_nothing() -> None:
    sets = {"train": normal(500, 1, 0)[:, 0], "far": torch.full((7,), 1e6), "same": torch.zeros(3)}
    result = statistics.histograms(sets)
    assert len(result["edges"]) == statistics.BINS + 1
    assert {name: sum(counts) for name, counts in result["counts"].items()} == {
        "train": 500,
        "far": 7,
        "same": 3,
    }
    assert sum(statistics.histograms({"same": torch.full((3,), 5.0)})["counts"]["same"]) == 3


def test_a_summary_has_moments_and_quantiles() -> None:
    result = statistics.summary(torch.arange(101.0))
    assert (result["count"], result["mean"], result["quantiles"]["0.5"], result["quantiles"]["0.95"]) == (
        101,
        50,
        50,
        95,
    )
    assert result["std"] == pytest.approx(29.3, abs=0.01)
