"""What the tests share."""

import os

# before torch is imported: small operations are faster on one thread, and threads that spin take cores from ranks
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import call

from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # several ranks, one GPU: NCCL would refuse


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (see Makefile) the tests of a file stay together, and those that share ranks, whatever their
    file; those of ranks come first, for they take longest."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        shares_ranks = item.path.parent.name == "dist"
        item.add_marker(pytest.mark.xdist_group("dist" if shares_ranks else str(item.path)))
    items.sort(key=lambda item: item.path.parent.name != "dist")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the 400 demo faces at 16 px."""
    out = tmp_path_factory.mktemp("shards") / "faces16"
    made = call("tools/make_shards.py", "demo:faces", out, "--size", 16)
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, in this process."""
    process_group.init_distributed(RankInfo(), 60)
    yield
    process_group.shutdown()
