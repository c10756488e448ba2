"""Floating-point operations per second of a rank, and the share of its device's peak (MFU)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ggcn.config.schema import ModelConfig

PEAKS = (
    ("H100 PCIe", 756, 51.2),
    ("H100 NVL", 835, 60.0),
    ("H100", 989, 66.9),
    ("H200", 989, 66.9),
    ("A100", 312, 19.5),
    ("A10G", 70, 35.0),
    ("A30", 165, 10.3),
    ("A40", 149.7, 37.4),
    ("L40S", 362, 91.6),
    ("L4", 121, 30.3),
    ("V100", None, 15.7),
    ("T4", None, 8.1),
)
"""(part of the device's name, peak in TFLOP/s of dense products in bf16, and in fp32 without TF32, which training does
not use), from the makers' data sheets; the first that fits counts. None: it has no bf16 products"""


def peak_tflops(device: str, precision: str) -> float | None:
    """The peak of a device by its name and engine.precision; None where it is not known, as for a slice of a GPU."""
    if "MIG" in device:
        return None
    words = device.replace("-", " ").split()
    for name, bf16, fp32 in PEAKS:
        if all(word in words for word in name.split()):
            return fp32 if precision == "fp32" else bf16
    return None


class FlopCount(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, backward passes included, as torch's FlopCounterMode
    does, but without following modules, which second derivatives confuse."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:  # in inference mode a product may come as an operation made of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result


class Utilization:
    """Counts the operations of this rank's first step of each kind (with chains and without), and divides what all
    steps take by their time."""

    def __init__(self, peak: float | None, model: ModelConfig) -> None:
        """peak: TFLOP/s of the device, None where it is not known."""
        self.peak = peak
        self.every = model.chain.every if model.flow.objective == "transport" else 1
        self.counts: dict[bool, int] = {}
        self.flops = self.seconds = 0.0

    def _has_chains(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around the work of step number `step`, from 0; it is slower while it is counted, to the same bits."""
        chains = self._has_chains(step)
        if chains in self.counts:
            yield
            return
        with FlopCount() as counter:
            yield
        self.counts[chains] = counter.flops

    def add(self, step: int, seconds: float) -> None:
        """Step number `step`, from 0, has taken so many seconds."""
        self.flops += self.counts.get(self._has_chains(step), 0)
        self.seconds += seconds

    def pop(self) -> dict[str, float]:
        """tflops_per_second since the last call and, where the peak is known, mfu, its share of it."""
        if not self.seconds or not self.flops:
            return {}
        rate = self.flops / self.seconds / 1e12
        self.flops = self.seconds = 0.0
        return {"tflops_per_second": rate, **({"mfu": rate / self.peak} if self.peak else {})}


def device_peak(device: torch.device, precision: str, configured: float) -> float | None:
    """TFLOP/s of a rank's device: as configured, else by its name; None where it is not known, as for CPUs."""
    if configured:
        return configured
    return peak_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
