"""Learning rates and clipping as they are logged, and the share of the device's peak."""

import pytest
import torch
from helpers import TINY
from torch import nn

from ggcn.config.compose import compose
from ggcn.config.schema import OptimizerConfig, TrainConfig
from ggcn.distributed.lanes import Lanes
from ggcn.training.optimizer_metrics import OptimizerMetrics
from ggcn.training.utilization import FlopCount, Utilization, peak_tflops


def test_a_line_says_how_often_and_how_much_gradients_were_clipped() -> None:
    energy = OptimizerConfig(lr=0.1, clip=2.0, warmup=10)
    metrics = OptimizerMetrics(
        TrainConfig(energy=energy, upsampler=OptimizerConfig(lr=0.01, clip=0, warmup=0))
    )
    for norm in (1.0, 2.0, 4.0, 8.0):
        metrics.add({"energy_gradient_norm": norm})
    metrics.add({"upsampler_gradient_norm": 9.0})
    assert metrics.pop(5) == {
        "energy_lr": pytest.approx(0.05),
        "energy_clipped": 0.5,
        "energy_clip_scale": pytest.approx((1 + 1 + 0.5 + 0.25) / 4),
        "upsampler_lr": 0.01,
        "upsampler_clipped": 0.0,
        "upsampler_clip_scale": 1.0,
    }
    metrics.add({"energy_gradient_norm": 4.0})
    assert "upsampler_lr" not in metrics.pop(6)


def test_counted_operations_are_those_of_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 1))
    x = torch.randn(5, 3, 16, 16, requires_grad=True)
    forward = 2 * 5 * (3 * 16 * 8 * 64 + 8 * 64)

    def second_derivatives() -> torch.Tensor:
        net.zero_grad()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
        return net[0].weight.grad.clone()

    with FlopCount() as counter:
        net(x)
    assert counter.flops == forward
    plain = second_derivatives()
    with FlopCount() as counter:
        counted = second_derivatives()
    assert counter.flops > 3 * forward
    assert torch.equal(plain, counted)
    with FlopCount() as counter, torch.inference_mode():
        net(x)
    assert counter.flops == forward


@pytest.mark.usefixtures("alone")
def test_steps_with_chains_have_more_operations() -> None:
    config = compose([*TINY, "model=ggcn", "model.grids=[4,16]", "model.chain.every=2", "engine=plain"])
    lanes = Lanes(config.lanes, width=config.train.batch // config.lanes)
    utilization = Utilization(1e-6, config, lanes, torch.device("cpu"))
    without, with_chains = (utilization.counts[kind] for kind in (False, True))
    assert with_chains > without > 0
    for step in range(4):
        utilization.add(step, 0.5)
    rates = utilization.pop()
    assert rates["tflops_per_second"] == pytest.approx((without + with_chains) / 1e12)
    assert rates["mfu"] == pytest.approx(rates["tflops_per_second"] / 1e-6)
    assert utilization.pop() == {}


def test_nothing_is_counted_where_the_peak_is_not_known() -> None:
    config = compose([*TINY, "engine=plain"])
    utilization = Utilization(None, config, Lanes(config.lanes), torch.device("cpu"))
    utilization.add(0, 0.5)
    assert utilization.pop() == {}


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA L40S", "bf16_parameters", 362),
        ("Some Future GPU", "bf16", None),
    ],
)
def test_a_peak_is_known_or_not_told(device: str, precision: str, peak: float | None) -> None:
    assert peak_tflops(device, precision) == peak
