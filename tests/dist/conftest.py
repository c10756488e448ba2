"""Ranks for the tests of this folder."""

from collections.abc import Iterator

import pytest
from rank_pool import RankPool


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    """Gloo ranks, started when a test needs them."""
    pool = RankPool()
    yield pool
    pool.close()
