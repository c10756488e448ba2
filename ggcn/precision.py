"""Which numbers the networks compute in, and the flags of PyTorch that decide it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


EXACT = "ieee"
"""float32 products of float32 numbers, and not of their first 10 bits (TF32) or 7 (bf16)"""
MEMORY: Any = torch.utils.deterministic


def set_numeric_flags() -> None:
    """Sets the flags of this process that decide what PyTorch computes: float32 stays float32 in every library
    (no TF32), and operators are chosen so that the same call gives the same bits.

    Every entry point calls it: ranks, tools, and `ggcn.load`. Best before the first GPU operation, since cuBLAS reads
    its workspace's size once. `numeric_flags` does the same for a while.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    backends: Any = torch.backends
    # the older flags first: where they disagree with the newer ones, reading either raises an error
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    backends.fp32_precision = backends.cudnn.fp32_precision = EXACT
    for part in _parts():
        part.fp32_precision = EXACT
    backends.cudnn.enabled = backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False  # it takes what is fastest now, which may be another operator next time
    if torch.cuda.is_available():  # a CPU's operators are deterministic as they are, on one number of threads
        torch.use_deterministic_algorithms(True, warn_only=True)
        MEMORY.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory


@contextmanager
def numeric_flags() -> Iterator[None]:
    """Numeric flags as `set_numeric_flags` leaves them, and as they were before at the end."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    switches = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    matmul, convolutions = _legacy_flags()
    precisions = [backends.fp32_precision, cudnn.fp32_precision]
    precisions += [part.fp32_precision for part in _parts()]
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = MEMORY.fill_uninitialized_memory
    set_numeric_flags()
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        backends.fp32_precision, cudnn.fp32_precision = precisions[:2]
        for part, precision in zip(_parts(), precisions[2:], strict=True):
            part.fp32_precision = precision
        cudnn.enabled, cudnn.deterministic, cudnn.benchmark = switches
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        MEMORY.fill_uninitialized_memory = filled


def _parts() -> list[Any]:
    """What has a precision of its own; the rest follows its library's."""
    backends: Any = torch.backends
    cuda, cudnn, cpu = backends.cuda, backends.cudnn, backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]


def _legacy_flags() -> list[Any]:
    """The older flags of matrix products and convolutions; None where the newer ones were set to something else."""
    found: list[Any] = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found
