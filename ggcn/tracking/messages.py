"""What rank 0 and the process of a tracker tell each other."""

import json
from dataclasses import asdict, dataclass, field

LONGEST = 1 << 20
"""bytes of a message at most"""


@dataclass(frozen=True)
class Message:
    """From rank 0: a record of some kind ("metrics", "evaluation", "samples"), or the end ("finish")."""

    kind: str
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    name: str = ""
    path: str = ""
    """of an image"""
    outcome: str = ""

    def encode(self) -> bytes:
        """The message as one packet."""
        return json.dumps(asdict(self)).encode()


def decode(data: bytes) -> Message:
    """The message in a packet."""
    return Message(**json.loads(data))


@dataclass
class Progress:
    """To rank 0: the numbers of records so far."""

    done: int = 0
    failed: int = 0
    """the tracker raised"""
    dropped: int = 0
    """the tracker was too slow, and too many waited"""
    error: str = ""
    """the newest failure"""

    def encode(self) -> bytes:
        """The numbers as one packet."""
        return json.dumps(asdict(self)).encode()
