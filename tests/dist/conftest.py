"""Ranks for the tests of this folder."""

from collections.abc import Iterator

import pytest
from rank_pool import Crew


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Gloo ranks, started as tests ask for them."""
    ranks = Crew()
    yield ranks
    ranks.close()
