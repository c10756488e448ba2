"""Any number of ranks calibrates the same chain time."""

import pytest
from rank_pool import RankPool
from tiny_model import with_slopes
from torch import Tensor

from ggcn.evaluation.images import to_bytes
from ggcn.sampling.calibration import calibrate


def calibrated(rank: int, world: int, images: Tensor) -> dict:
    return calibrate(with_slopes(), images)


def test_every_rank_of_any_number_gets_the_same_time(rank_pool: RankPool) -> None:
    images = to_bytes(with_slopes().sample(100, time=1.5))
    one, two, four = (rank_pool.run(world, calibrated, images) for world in (1, 2, 4))
    assert two[0] == two[1]
    assert all(result == four[0] for result in four)
    assert one[0]["time"] == pytest.approx(two[0]["time"], abs=0.011)
    assert one[0]["time"] == pytest.approx(four[0]["time"], abs=0.011)
