"""Floating-point precision of the networks, and the global flags of PyTorch that affect it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Precision = str
"""bf16 (autocast over fp32 parameters), bf16_parameters (autocast over bf16 ones) or fp32"""


def autocast(x: Tensor, precision: Precision) -> torch.autocast:
    """bf16 autocast where `precision` asks for it. The networks enter it themselves, so that chains, training
    steps and samplers compute alike."""
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision != "fp32")


def widen(x: Tensor) -> Tensor:
    """At least float32: bf16 becomes float32, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor) -> Tensor:
    """`x` in the type that autocast would cast it to for a convolution; casting early makes later copies cheaper."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


FULL_FP32 = "ieee"
"""float32 products of all bits of their factors, unlike TF32 and bf16"""
DETERMINISTIC: Any = torch.utils.deterministic


def set_numeric_flags() -> None:
    """Sets the flags of this process that decide what PyTorch computes: float32 stays float32 in every library
    (no TF32), and operators are chosen so that the same call gives the same bits.

    Every entry point calls it: ranks, tools, and `ggcn.load`. Best before the first GPU operation, since cuBLAS reads
    its workspace's size once. `numeric_flags` does the same for the duration of a block.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    backends: Any = torch.backends
    # the older flags first: where they disagree with the newer ones, reading either raises an error
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    backends.fp32_precision = backends.cudnn.fp32_precision = FULL_FP32
    for backend in _backends():
        backend.fp32_precision = FULL_FP32
    backends.cudnn.enabled = backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False  # it would choose the fastest operator, which may change from run to run
    if torch.cuda.is_available():  # a CPU's operators are deterministic as they are, on one number of threads
        torch.use_deterministic_algorithms(True, warn_only=True)
        DETERMINISTIC.fill_uninitialized_memory = (
            False  # expensive, and nothing here reads uninitialized memory
        )


@contextmanager
def numeric_flags() -> Iterator[None]:
    """Sets the numeric flags as `set_numeric_flags` does, and restores the former ones at the end."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    cudnn_flags = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    matmul, convolutions = _legacy_flags()
    precisions = [backends.fp32_precision, cudnn.fp32_precision]
    precisions += [backend.fp32_precision for backend in _backends()]
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill_memory = DETERMINISTIC.fill_uninitialized_memory
    set_numeric_flags()
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        backends.fp32_precision, cudnn.fp32_precision = precisions[:2]
        for backend, precision in zip(_backends(), precisions[2:], strict=True):
            backend.fp32_precision = precision
        cudnn.enabled, cudnn.deterministic, cudnn.benchmark = cudnn_flags
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        DETERMINISTIC.fill_uninitialized_memory = fill_memory


def _backends() -> list[Any]:
    """The operators with a precision of their own; the others follow their library's."""
    backends: Any = torch.backends
    cuda, cudnn, cpu = backends.cuda, backends.cudnn, backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]


def _legacy_flags() -> list[Any]:
    """The older flags of matrix products and convolutions; None where the newer ones were set to something else."""
    values: list[Any] = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            values.append(read())
        except RuntimeError:
            values.append(None)
    return values
