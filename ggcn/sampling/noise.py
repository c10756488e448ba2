"""Normal noise for many chains at once, one random stream per lane."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ggcn.distributed.lanes import Key, bits, generator

Stream = np.random.Generator | torch.Generator


class Noise:
    """Fills batches with N(0, 1), each key's slice from a stream of its own.

    On a CPU a number is one of the 65,536 middle quantiles of N(0, 1), drawn by 16 random bits: to float32 the
    variance is 1, the kurtosis is 2.9992, none lies beyond 4.33, and drawing takes a sixth of the time of exact
    ones, which would be an eighth of a chain's time.

    Keys are lanes in training and single samples elsewhere; a slice does not depend on what else is in the
    batch. On a GPU the numbers are drawn there, from the same keys but other streams than on a CPU.
    """

    def __init__(self, keys: Sequence[tuple[Key, ...]], device: torch.device) -> None:
        self.device = device
        self.streams = [self._stream(key) for key in keys]

    def _stream(self, key: tuple[Key, ...]) -> Stream:
        if self.device.type == "cpu":
            return generator(*key)
        return torch.Generator(self.device).manual_seed(bits(*key) >> 1)

    def slice(self, first: int, end: int) -> "Noise":
        """The streams of keys number `first` to `end`, shared with this one."""
        part = Noise([], self.device)
        part.streams = self.streams[first:end]
        return part

    def normal_(self, out: Tensor) -> Tensor:
        """Overwrites `out` [keys * width, ...], contiguous float32, by the streams' next numbers."""
        for stream, part in zip(self.streams, out.chunk(len(self.streams)), strict=True):
            if isinstance(stream, torch.Generator):
                part.normal_(generator=stream)
            else:
                _fill(part.view(-1).numpy(), stream)
        return out

    def normal(self, *shape: int) -> Tensor:
        """A new tensor of N(0, 1), float32, on the device."""
        return self.normal_(torch.empty(shape, dtype=torch.float32, device=self.device))


def host_normal(keys: Sequence[tuple[Key, ...]], *shape: int) -> Tensor:
    """N(0, 1) of `shape`, equal on every kind of device because it is drawn on the CPU."""
    return Noise(keys, torch.device("cpu")).normal(*shape)


def _fill(out: np.ndarray, stream: np.random.Generator) -> None:
    """Overwrites `out` [count] float32; the numbers depend on the stream and on the counts drawn from it."""
    raw = stream.bit_generator.random_raw(-(-len(out) // 4))
    np.take(_quantiles(), raw.view(np.uint16)[: len(out)], out=out, mode="clip")


@cache
def _quantiles() -> np.ndarray:
    """The middles of 2^16 equally likely slices of N(0, 1), scaled to variance 1; float32, symmetrical."""
    half = torch.special.ndtri((torch.arange(2**15, dtype=torch.float64, device="cpu") + 0.5) / 2**16)
    both = torch.cat([half, -half.flip(0)])
    return (both / both.square().mean().sqrt()).float().numpy()
