"""Distances against their closed forms and their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ggcn.evaluation import metrics


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def white(count: int, width: int, seed: int) -> Tensor:
    """Vectors whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = normal(count, width, seed).double()
    x -= x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T


def test_fid_between_gaussians_is_the_closed_form() -> None:
    spread = torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    one, other = white(300, 4, 0), white(200, 4, 1) * spread + shift
    expected = shift.square().sum() + (spread - 1).square().sum()
    assert metrics.fid(one.float(), other.float()) == pytest.approx(float(expected), rel=1e-4)


def test_fid_of_fewer_pictures_than_features_is_the_same_formula() -> None:
    one, other = normal(20, 50, 0).double(), 1 + 2 * normal(25, 50, 1).double()
    spreads = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (one, other)]
    traces = (
        sum(x.square().sum() for x in spreads) - 2 * torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    )
    expected = (one.mean(0) - other.mean(0)).square().sum() + traces
    assert metrics.fid(one, other) == pytest.approx(float(expected), rel=1e-5)


def test_kid_is_nothing_between_equals_and_grows_with_a_shift() -> None:
    real, same = normal(400, 8, 0), normal(400, 8, 1)
    found = [metrics.kid(real, fake)["kid"] for fake in (same, same + 0.5, same + 1)]
    assert abs(found[0]) < 0.02 < found[1] < found[2]


def test_kid_of_two_constant_sets_is_the_closed_form() -> None:
    real, fake = torch.zeros(20, 4), torch.ones(20, 4)
    told = metrics.kid(real, fake)
    assert told["kid"] == pytest.approx(1 + 2**3 - 2 * 1)  # k(x, y) = (x . y / 4 + 1) ^ 3
    assert told["kid_subset"] == 10


def test_kid_neither_heeds_nor_moves_the_process_s_random_numbers() -> None:
    real, fake = normal(50, 4, 0), normal(50, 4, 1)
    torch.manual_seed(1)
    before, one = torch.get_rng_state(), metrics.kid(real, fake)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert metrics.kid(real, fake) == one
    assert metrics.kid(real, fake, seed=1) != one


def by_definition(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Precision and recall with 3 neighbours, density and coverage with 5, picture by picture, as the papers say it."""

    def reach(x: np.ndarray, k: int) -> list[float]:
        return [sorted(np.linalg.norm(x - one, axis=1))[k] for one in x]

    def inside(k: int) -> np.ndarray:
        return np.array(
            [np.linalg.norm(fake - one, axis=1) <= r for one, r in zip(real, reach(real, k), strict=True)]
        )

    held = [any(np.linalg.norm(fake - one, axis=1) <= reach(fake, 3)) for one in real]
    return {
        "precision": inside(3).any(0).mean(),
        "recall": np.mean(held),
        "density": inside(5).sum() / (5 * len(fake)),
        "coverage": inside(5).any(1).mean(),
    }


def test_overlap_is_what_the_reference_implementation_says() -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = normal(300, 8, 0), 0.7 * normal(250, 8, 1) + 0.3
    three, five = (prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=k) for k in (3, 5))
    found = metrics.overlap(real, fake)
    assert found == pytest.approx(
        {name: (three if name in ("precision", "recall") else five)[name] for name in found}
    )
    assert found["precision"] != five["precision"]
    assert found["recall"] != five["recall"]


def test_a_row_says_what_it_depends_on() -> None:
    told = metrics.distances(normal(60, 4, 0), normal(50, 4, 1))
    assert (told["count"], told["against"], told["width"]) == (50, 60, 4)
    assert told["neighbours"] == {"precision": 3, "recall": 3, "density": 5, "coverage": 5}


def test_overlap_is_its_definition_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(60, 3, 0), 0.6 * normal(45, 3, 1) + 0.4
    expected = by_definition(real.numpy(), fake.numpy())
    assert 0.1 < expected["recall"] < expected["precision"] <= 1
    for rows in (7, 1024):
        monkeypatch.setattr(metrics, "ROWS", rows)
        assert metrics.overlap(real, fake) == pytest.approx(expected)


def test_overlap_tells_poor_pictures_from_few_kinds() -> None:
    real = normal(200, 6, 0)
    good, alike = normal(200, 6, 1), real[:1] + 0.01 * normal(200, 6, 2)
    equal, few, far = (metrics.overlap(real, fake) for fake in (good, alike, good + 50))
    assert min(equal["precision"], equal["recall"], equal["coverage"]) > 0.7
    assert equal["density"] == pytest.approx(1, abs=0.2)
    assert few["precision"] == 1
    assert max(few["recall"], few["coverage"]) < 0.2
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_auroc_counts_pairs() -> None:
    low, high = torch.tensor([0.0, 1.0, 1.0, 3.0]), torch.tensor([1.0, 2.0])
    assert metrics.auroc(low, high) == (2.0 + 3.0) / 8
    assert metrics.auroc(low, low + 10) == 1
    assert metrics.auroc(low + 10, low) == 0
    assert metrics.auroc(low, low) == 0.5
    far = torch.tensor([1000.0, 1001.0])  # a sigmoid would call them equal
    assert metrics.auroc(far[:1], far[1:]) == 1


def test_nearest_is_exact_and_leaves_out_whom_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", 7)
    known = 100 + normal(40, 500, 0)
    assert metrics.nearest([known], known)[:, 0].tolist() == [0.0] * 40
    found = metrics.nearest([known], known, range(40))
    every = torch.cdist(known.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(found.double(), every.fill_diagonal_(torch.inf).sort(1).values[:, :2])


def test_histograms_share_their_bins_and_lose_nothing() -> None:
    sets = {"train": normal(500, 1, 0)[:, 0], "far": torch.full((7,), 1e6), "same": torch.zeros(3)}
    told = metrics.histograms(sets)
    assert len(told["edges"]) == metrics.BINS + 1
    assert {name: sum(counts) for name, counts in told["counts"].items()} == {
        "train": 500,
        "far": 7,
        "same": 3,
    }
    assert sum(metrics.histograms({"same": torch.full((3,), 5.0)})["counts"]["same"]) == 3


def test_summary() -> None:
    told = metrics.summary(torch.arange(101.0))
    assert (told["count"], told["mean"], told["quantiles"]["0.5"], told["quantiles"]["0.95"]) == (
        101,
        50,
        50,
        95,
    )
    assert told["sd"] == pytest.approx(29.3, abs=0.01)


def test_fid_of_degenerate_sets_is_finite_and_never_negative() -> None:
    flat = normal(300, 5, 0) @ normal(5, 40, 1)  # 5 directions of 40
    assert 0 <= metrics.fid(flat, flat) < 1e-3
    assert metrics.fid(flat, flat + 1) == pytest.approx(40, rel=1e-4)
    assert metrics.fid(torch.zeros(50, 40), torch.zeros(60, 40)) == 0
