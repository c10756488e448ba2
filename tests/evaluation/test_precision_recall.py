"""Precision, recall, density and coverage against their definitions and a reference implementation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ggcn.evaluation import metrics, precision_recall
from ggcn.evaluation.precision_recall import precision_recall as compute


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_definition(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Precision and recall with 3 neighbours, density and coverage with 5, image by image."""

    def reach(x: np.ndarray, k: int) -> list[float]:
        return [sorted(np.linalg.norm(x - one, axis=1))[k] for one in x]

    def inside(k: int) -> np.ndarray:
        return np.array(
            [np.linalg.norm(fake - one, axis=1) <= r for one, r in zip(real, reach(real, k), strict=True)]
        )

    recalled = [any(np.linalg.norm(fake - one, axis=1) <= reach(fake, 3)) for one in real]
    return {
        "precision": inside(3).any(0).mean(),
        "recall": np.mean(recalled),
        "density": inside(5).sum() / (5 * len(fake)),
        "coverage": inside(5).any(1).mean(),
    }


def test_values_are_those_of_the_reference_implementation() -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = normal(300, 8, 0), 0.7 * normal(250, 8, 1) + 0.3
    three, five = (prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=k) for k in (3, 5))
    values = compute(real, fake)
    assert values == pytest.approx(
        {name: (three if name in ("precision", "recall") else five)[name] for name in values}
    )
    assert values["precision"] != five["precision"]
    assert values["recall"] != five["recall"]


def test_values_follow_the_definition_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(60, 3, 0), 0.6 * normal(45, 3, 1) + 0.4
    expected = by_definition(real.numpy(), fake.numpy())
    assert 0.1 < expected["recall"] < expected["precision"] <= 1
    for rows in (7, 1024):
        monkeypatch.setattr(precision_recall, "ROWS", rows)
        assert compute(real, fake) == pytest.approx(expected)


def test_low_quality_lowers_precision_and_low_diversity_lowers_recall() -> None:
    real = normal(200, 6, 0)
    good, alike = normal(200, 6, 1), real[:1] + 0.01 * normal(200, 6, 2)
    equal, few, far = (compute(real, fake) for fake in (good, alike, good + 50))
    assert min(equal["precision"], equal["recall"], equal["coverage"]) > 0.7
    assert equal["density"] == pytest.approx(1, abs=0.2)
    assert few["precision"] == 1
    assert max(few["recall"], few["coverage"]) < 0.2
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_distances_name_what_they_depend_on() -> None:
    result = metrics.distances(normal(60, 4, 0), normal(50, 4, 1))
    assert (result["count"], result["against"], result["width"]) == (50, 60, 4)
    assert result["neighbours"] == {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
