"""Which rank of a run a process is, and where it finds the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RankInfo:
    """A rank's numbers, and the address at which the ranks meet."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """number among the ranks of this machine; the GPU it takes"""
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
