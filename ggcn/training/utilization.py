"""Floating-point operations per second of a rank, and the share of its device's peak (MFU)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ggcn.config.schema import Config
from ggcn.distributed.lanes import Lanes
from ggcn.learning.learner import Learner
from ggcn.models.build import CHANNELS

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
    """Divides the operations of this rank's steps by their time, where the device's peak is known."""

    def __init__(self, peak: float | None, config: Config, lanes: Lanes, device: torch.device) -> None:
        """peak: TFLOP/s of the device, None where it is not known. All ranks call it alike."""
        self.peak = peak
        self.every = chain_every(config)
        self.counts = count_step(config, lanes, device) if peak else {}
        self.flops = self.seconds = 0.0

    def add(self, step: int, seconds: float) -> None:
        """Step number `step`, from 0, has taken so many seconds."""
        self.flops += self.counts.get((step + 1) % self.every == 0, 0)
        self.seconds += seconds

    def pop(self) -> dict[str, float]:
        """tflops_per_second since the last call and mfu, its share of the peak; nothing where that is not known."""
        if not self.peak or not self.seconds or not self.flops:
            return {}
        rate = self.flops / self.seconds / 1e12
        self.flops = self.seconds = 0.0
        return {"tflops_per_second": rate, "mfu": rate / self.peak}


def chain_every(config: Config) -> int:
    """Steps from one with chains to the next."""
    return config.model.chain.every if config.model.flow.objective == "transport" else 1


def count_step(config: Config, lanes: Lanes, device: torch.device) -> dict[bool, int]:
    """The operations of a step of this rank with (True) and without chains.

    They are counted on networks of their own, for counting changes which kernels run, and so the bits of a step.
    """
    precision = config.engine.precision.removesuffix("_parameters")
    engine = replace(config.engine, kind="plain", precision=precision)
    learner = Learner(replace(config, engine=engine), lanes, device)
    size = config.model.grids[-1]
    images = torch.zeros(lanes.samples, CHANNELS, size, size, dtype=torch.uint8)
    counts, every = {}, chain_every(config)
    for step in (every - 1, every) if every > 1 else (0,):
        with FlopCount() as counter:
            data = learner.prepare_data(images, step)
            particles = learner.sample(step, data)
            learner.learn_energy(data, particles, step)
            learner.learn_upsamplers(particles, step)
        counts[particles is not None] = counter.flops
    learner.close()
    return counts


def device_peak(device: torch.device, precision: str, configured: float) -> float | None:
    """TFLOP/s of a rank's device: as configured, else by its name; None where it is not known, as for CPUs."""
    if configured:
        return configured
    return peak_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
