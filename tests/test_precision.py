"""The flags that decide what PyTorch computes: what entry points leave, and what library calls undo."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY
from safetensors.torch import save_file

import ggcn
from ggcn import precision
from ggcn.applications import export
from ggcn.cli import options
from ggcn.config.compose import compose, to_yaml
from ggcn.distributed import process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.evaluation.features import Network, features
from ggcn.models import build
from ggcn.sampling.sampler import Sampler
from tools import bench, check_gpu
from tools.benchmarks import chain

LOOSE = """
import torch
torch.set_float32_matmul_precision("high")
torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True
"""
"""what a user's own script may have set before it calls this project"""


def flags() -> dict[str, Any]:
    """Everything that decides about float32 and determinism."""
    backends: Any = torch.backends
    cuda, cudnn, cpu = backends.cuda, backends.cudnn, backends.mkldnn
    parts = {"cuda.matmul": cuda.matmul, "cudnn.conv": cudnn.conv, "cudnn.rnn": cudnn.rnn}
    parts |= {"cpu.conv": cpu.conv, "cpu.matmul": cpu.matmul}
    result = {name: part.fp32_precision for name, part in parts.items()}
    result |= {name: getattr(cudnn, name) for name in ("enabled", "deterministic", "benchmark")}
    return result | {
        "matmul": torch.get_float32_matmul_precision(),
        "cuda.allow_tf32": cuda.matmul.allow_tf32,
    }


EXACT = {
    "cuda.matmul": "ieee",
    "cudnn.conv": "ieee",
    "cudnn.rnn": "ieee",
    "cpu.conv": "ieee",
    "cpu.matmul": "ieee",
    "enabled": True,
    "deterministic": True,
    "benchmark": False,
    "matmul": "highest",
    "cuda.allow_tf32": False,
}


class Spy(Network):
    """Remembers the flags that it computes under."""

    name = "spy"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: dict[str, Any] = {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen = flags()
        return pixels.flatten(1).float()


@pytest.fixture(autouse=True)
def _flags_of_the_process() -> Iterator[None]:
    with precision.numeric_flags():
        yield


@pytest.fixture(params=["untouched", "older flags", "newer flags", "all libraries"])
def loosened(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A process that has its own flags, set in each way there is."""
    backends: Any = torch.backends
    backends.fp32_precision = backends.cudnn.fp32_precision = "none"  # PyTorch's defaults
    for part in precision._backends():
        part.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True
    backends.cudnn.deterministic = False
    if request.param == "older flags":
        exec(LOOSE)
    elif request.param == "newer flags":
        backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32"
    elif request.param == "all libraries":
        backends.fp32_precision = "tf32"
    return readable()


def readable() -> dict[str, Any]:
    """The flags that can be read in every state."""
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv)
    cudnn = backends.cudnn
    return {
        **{str(number): part.fp32_precision for number, part in enumerate(parts)},
        "switches": (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, backends.fp32_precision),
    }


def test_features_are_computed_in_float32_by_cudnn_and_leave_the_flags_alone(
    loosened: dict[str, Any],
) -> None:
    net = Spy()
    features(net, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert net.seen == EXACT
    assert readable() == loosened


def test_flags_come_back_after_an_error(loosened: dict[str, Any]) -> None:
    @precision.numeric_flags()
    def fail() -> None:
        assert flags() == EXACT
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert readable() == loosened


def test_older_and_newer_flags_agree_so_that_other_libraries_can_read_either(
    loosened: dict[str, Any],
) -> None:
    precision.set_numeric_flags()
    assert torch.backends.cudnn.allow_tf32 is False
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        pass
    assert flags()["cuda.matmul"] == "ieee"


def test_a_rank_trains_under_them(loosened: dict[str, Any]) -> None:
    process_group.init_distributed(RankInfo(), 60)
    process_group.shutdown()
    assert flags() == EXACT
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_loaded_model_samples_under_them(loosened: dict[str, Any], tmp_path: Path) -> None:
    config = compose(TINY)
    energies, upsamplers = build(config)
    metadata = {"format": export.FORMAT, "config": to_yaml(config), "step": "1"}
    save_file(export.weights(Sampler(config, energies, upsamplers)), tmp_path / "model.safetensors", metadata)
    ggcn.load(tmp_path / "model.safetensors")
    assert flags() == EXACT


def test_tools_measure_and_draw_under_them(
    loosened: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(*_: object) -> list[str]:
        (tmp_path / "report.md").touch()
        seen.append(flags())
        return []

    monkeypatch.setattr(check_gpu.Check, "part", record)
    monkeypatch.setattr(chain, "chains", record)
    for work in (
        lambda: options.device("cpu"),  # of sample.py and evaluate.py
        lambda: bench.main(["chain"]),
        check_gpu.main,
    ):
        exec(LOOSE)
        monkeypatch.setattr(sys, "argv", ["tool", "--out", str(tmp_path)])
        work()
        assert flags() == EXACT
    assert seen
    assert all(each == EXACT for each in seen)


def test_a_strict_process_stays_strict() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with precision.numeric_flags():
            pass
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
