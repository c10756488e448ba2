"""Which numbers the networks compute in."""

import torch
from torch import Tensor

Precision = str
"""bf16 (autocast over fp32 parameters), bf16_parameters (autocast over bf16 ones) or fp32"""


def autocast(x: Tensor, precision: Precision) -> torch.autocast:
    """bf16 autocast where `precision` asks for it; the networks do this themselves, so that a chain, a
    training step and a sampler compute alike, whoever calls them."""
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision != "fp32")


def widen(x: Tensor) -> Tensor:
    """At least float32: bf16 becomes float32, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor) -> Tensor:
    """`x` as autocast would hand it to a convolution, cast once and early where it is copied about before."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
