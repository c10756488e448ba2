"""FID and KID against their closed forms."""

import pytest
import torch
from torch import Tensor

from ggcn.evaluation.fid import fid, kid


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
    assert fid(one.float(), other.float()) == pytest.approx(float(expected), rel=1e-4)


def test_fid_of_fewer_images_than_features_is_the_same_formula() -> None:
    one, other = normal(20, 50, 0).double(), 1 + 2 * normal(25, 50, 1).double()
    spreads = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (one, other)]
    traces = (
        sum(x.square().sum() for x in spreads) - 2 * torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    )
    expected = (one.mean(0) - other.mean(0)).square().sum() + traces
    assert fid(one, other) == pytest.approx(float(expected), rel=1e-5)


def test_fid_of_degenerate_sets_is_finite_and_never_negative() -> None:
    flat = normal(300, 5, 0) @ normal(5, 40, 1)  # 5 directions of 40
    assert 0 <= fid(flat, flat) < 1e-3
    assert fid(flat, flat + 1) == pytest.approx(40, rel=1e-4)
    assert fid(torch.zeros(50, 40), torch.zeros(60, 40)) == 0


def test_kid_is_zero_between_equal_sets_and_grows_with_a_shift() -> None:
    real, same = normal(400, 8, 0), normal(400, 8, 1)
    values = [kid(real, fake)["kid"] for fake in (same, same + 0.5, same + 1)]
    assert abs(values[0]) < 0.02 < values[1] < values[2]


def test_kid_of_two_constant_sets_is_the_closed_form() -> None:
    real, fake = torch.zeros(20, 4), torch.ones(20, 4)
    result = kid(real, fake)
    assert result["kid"] == pytest.approx(1 + 2**3 - 2 * 1)  # k(x, y) = (x . y / 4 + 1) ^ 3
    assert result["kid_subset"] == 10


def test_kid_neither_uses_nor_changes_the_process_s_random_state() -> None:
    real, fake = normal(50, 4, 0), normal(50, 4, 1)
    torch.manual_seed(1)
    before, one = torch.get_rng_state(), kid(real, fake)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert kid(real, fake) == one
    assert kid(real, fake, seed=1) != one
