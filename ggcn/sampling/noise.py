"""Normal noise for many chains at once, one random stream per lane."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ggcn.lanes import Key, bits, generator


class Noise:
    """Fills batches with N(0, 1), each key's slice from a stream of its own.

    Keys are lanes in training and single samples elsewhere; a slice does not depend on who else is in the
    batch. On a GPU the numbers are drawn there, from the same keys but other streams than on a CPU.
    """

    def __init__(self, keys: Sequence[tuple[Key, ...]], device: torch.device) -> None:
        self.device = device
        self.streams = [self._stream(key) for key in keys]

    def _stream(self, key: tuple[Key, ...]) -> object:
        if self.device.type == "cpu":
            return generator(*key)
        return torch.Generator(self.device).manual_seed(bits(*key) >> 1)

    def part(self, first: int, end: int) -> "Noise":
        """The streams of keys number `first` to `end`, shared with this one."""
        few = Noise([], self.device)
        few.streams = self.streams[first:end]
        return few

    def normal_(self, out: Tensor) -> Tensor:
        """Overwrites `out` [keys * width, ...], contiguous float32, by the streams' next numbers."""
        for stream, part in zip(self.streams, out.chunk(len(self.streams)), strict=True):
            if isinstance(stream, torch.Generator):
                part.normal_(generator=stream)
            else:
                stream.standard_normal(out=part.numpy(), dtype="float32")  # type: ignore[attr-defined]
        return out

    def normal(self, *shape: int) -> Tensor:
        """A new tensor of N(0, 1), float32, on the device."""
        return self.normal_(torch.empty(shape, device=self.device))


def host_normal(keys: Sequence[tuple[Key, ...]], *shape: int) -> Tensor:
    """N(0, 1) of `shape`, equal on every kind of device because it is drawn on the CPU."""
    return Noise(keys, torch.device("cpu")).normal(*shape)
