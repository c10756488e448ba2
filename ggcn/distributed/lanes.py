"""Lanes, and every random number of a run.

A run has a fixed number of lanes whatever the machine. A lane is an equal slice of every global batch:
its own stretch of the data, its own chains, its own random stream. A rank owns `count / world` of them.
Nothing random lives in a process: every draw is a function of (seed, step, lane, purpose), so that a run
can stop anywhere, resume on another number of ranks, and still be the same run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import index

import numpy as np

from ggcn.errors import UserError

Key = int | str


def bits(*key: Key) -> int:
    """64 uniform bits that depend on nothing but `key` (ints and strings, order matters)."""
    return _digest(key, 8)


def generator(*key: Key) -> np.random.Generator:
    """A random stream of its own for `key`, equal on every machine.

    256 bits of state are seeded from the key: torch's CPU generator keeps 32 of a seed's bits, and two of
    a long run's streams would meet.
    """
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(_digest(key, 32))))


def exact_share(share: float, count: int) -> Fraction:
    """`share` of `count` in decimal arithmetic: 0.07 of 100 is 7, where binary fractions make it a little more."""
    return Fraction(repr(share)) * count


def _digest(key: tuple[Key, ...], size: int) -> int:
    """A number of `size` bytes. NumPy's integers count as Python's; a float raises TypeError."""
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(index(part))}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "little")


@dataclass(frozen=True)
class Lanes:
    """Which lanes a rank owns: contiguous, in rank order, so that ranks concatenate to the global batch."""

    count: int
    """lanes of the run, fixed for its life"""
    rank: int = 0
    world: int = 1
    width: int = 1
    """samples per lane in a global batch"""

    def __post_init__(self) -> None:
        if self.count % self.world:
            raise UserError(
                f"{self.world} ranks cannot share {self.count} lanes equally; "
                f"use a number of ranks that divides {self.count}"
            )

    @property
    def owned(self) -> range:
        """The numbers of this rank's lanes."""
        share = self.count // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    @property
    def samples(self) -> int:
        """Samples of a global batch that this rank holds."""
        return len(self.owned) * self.width

    def keys(self, *key: Key) -> Sequence[tuple[Key, ...]]:
        """One stream key per owned lane: `key` followed by the lane's number."""
        return [(*key, "lane", lane) for lane in self.owned]
