"""A cluster for the tests."""

from collections.abc import Iterator

import pytest
from slurm_cluster import Machine, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Machine]:
    """Two nodes; a preempted job gets USR2 and 20 seconds."""
    with cluster() as machine:
        yield machine
