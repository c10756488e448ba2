"""Small shards, and a web server for them."""

# mypy: allow-untyped-defs

from collections.abc import Iterator
from pathlib import Path

import pytest
import shard_files as shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 samples of 8 x 8 pixels in five uneven shards."""
    path = tmp_path_factory.mktemp("shards")
    shards.build(path, [13, 1, 20, 7, 20])
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[shards.Server]:
    with shards.serve(folder) as state:
        yield state
