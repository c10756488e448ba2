"""Which device a rank takes, and what is said where GPUs were asked for and are not there."""

import os

import pytest
import torch

from ggcn.distributed import devices, process_group
from ggcn.distributed.devices import device_index
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError


@pytest.mark.parametrize(
    ("local_rank", "local_world", "visible", "index"),
    [
        (0, 1, 0, None),
        (1, 2, 0, None),
        (0, 4, 4, 0),
        (3, 4, 4, 3),
        (3, 4, 8, 3),
        (3, 4, 1, 0),  # SLURM shows each rank its own
        (1, 2, 2, 1),  # two of its own, or the node's two: different ones either way
        (3, 4, 2, 1),  # two of its own
    ],
)
def test_a_rank_takes_a_gpu_that_it_sees(
    local_rank: int, local_world: int, visible: int, index: int | None
) -> None:
    assert device_index(local_rank, local_world, visible) == index


def test_more_ranks_than_gpus_of_the_node_are_refused() -> None:
    assert device_index(1, 2, 2, on_node=2) == 1
    for visible in (1, 2):
        with pytest.raises(UserError, match="4 ranks on a node share 2 GPUs.*lower cluster.ranks_per_node"):
            device_index(3, 4, visible, on_node=2)


@pytest.mark.parametrize("index", [0, 2])
def test_deepspeed_hears_of_the_device_in_use(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the GPU numbered LOCAL_RANK."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    process_group._export(
        RankInfo(rank=7, world=8, local_rank=3, local_world=4, port=1), torch.device("cuda", index)
    )
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("7", str(index))
    assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ


@pytest.mark.parametrize(
    ("variable", "value", "asked"),
    [
        ("GGCN_GPUS_PER_NODE", "4", "cluster.gpus_per_node=4"),
        ("GGCN_GPUS_PER_NODE", "0", None),
        ("SLURM_GPUS_ON_NODE", "2", "SLURM_GPUS_ON_NODE=2"),
        ("SLURM_GPUS_ON_NODE", "gpu:2", "SLURM_GPUS_ON_NODE=2"),
        ("SLURM_GPUS_ON_NODE", "0", None),
        ("SLURM_JOB_GPUS", "0,1", "SLURM_JOB_GPUS=0,1"),
        ("CUDA_VISIBLE_DEVICES", "0", "CUDA_VISIBLE_DEVICES=0"),
        ("CUDA_VISIBLE_DEVICES", "GPU-5ebe9f43", "CUDA_VISIBLE_DEVICES=GPU-5ebe9f43"),
        ("CUDA_VISIBLE_DEVICES", "", None),
        ("CUDA_VISIBLE_DEVICES", "-1", None),
        ("CUDA_VISIBLE_DEVICES", "NoDevFiles", None),
    ],
)
def test_who_asked_for_gpus(
    variable: str, value: str, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(variable, value)
    assert devices.gpu_request() == asked
    if torch.cuda.is_available():
        return
    if asked is None:
        assert devices.choose_device(RankInfo(), devices.gpu_request()).type == "cpu"
        return
    with pytest.raises(UserError) as raised:
        devices.choose_device(RankInfo(), devices.gpu_request())
    assert f"GPUs were requested ({asked})" in str(raised.value)
    assert devices.cuda_unavailable_reason() in str(raised.value)


def test_the_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert devices.device_summary(torch.device("cpu"), RankInfo()) == "CPU, 1 thread"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert devices.device_summary(torch.device("cpu"), RankInfo(0, 2, 0, 2)) == "2 x CPU, 3 threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert devices.device_summary(torch.device("cuda", 0), RankInfo(0, 2, 0, 2)) == "2 x NVIDIA H100"
