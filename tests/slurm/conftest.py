"""A cluster for the tests."""

from collections.abc import Iterator

import pytest
from machine import Machine, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Machine]:
    """Two nodes; a preempted job gets USR2 and 20 seconds."""
    with cluster() as machine:
        yield machine
