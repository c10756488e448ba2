"""Damage to files, from single bits to hostile values, and the promise that every input is answered in time."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hypothesis import strategies as st

HANG_S = 10
TOKENS = (
    b"\0",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"NaN",
    b"99999999999999999999999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"',
    b"\n",
    b"null",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"../../etc/passwd",
    b"${oc.env:HOME}",
    "\u202e\u2028".encode(),
    b"\xed\xa0\x80",
)
VALUES = (
    None,
    True,
    -1,
    0,
    2**31,
    2**64,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "../../x",
    "/etc/passwd",
    "\ud800",
    "\0",
    "<script>",
    [],
    {},
    [[[[]]]],
    {"a": {"b": 1}},
)
"""what a JSON value is replaced by"""

Edit = tuple[str, float, float, int]
edits = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "repeat", "end", "insert", "swap")),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)
"""changes of bytes: a kind, where it begins and how far it reaches as shares of the file, and a number"""


def damaged(data: bytes, changes: list[Edit]) -> bytes:
    """A file's bytes after some changes."""
    for kind, begin, length, number in changes:
        at = int(begin * len(data))
        reach = at + 1 + int(length**4 * (len(data) - at))  # mostly near
        data = _CHANGES[kind](data, at, reach, number)
    return data


_CHANGES: dict[str, Callable[[bytes, int, int, int], bytes]] = {
    "flip": lambda data, at, to, n: (
        data[:at] + bytes(b ^ (1 << n % 8) for b in data[at : at + 1]) + data[at + 1 :]
    ),
    "set": lambda data, at, to, n: data[:at] + bytes([n]) * len(data[at:to]) + data[to:],
    "cut": lambda data, at, to, n: data[:at] + data[to:],
    "repeat": lambda data, at, to, n: data[:to] + data[at:to] * (1 + n % 3) + data[to:],
    "end": lambda data, at, to, n: data[:at],
    "insert": lambda data, at, to, n: data[:at] + TOKENS[n % len(TOKENS)] + data[at:],
    "swap": lambda data, at, to, n: data[:at] + data[at:to][::-1] + data[to:],
}

replacements = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(VALUES), st.sampled_from(("value", "remove", "key"))),
    min_size=1,
    max_size=3,
)
"""changes of a JSON value: which of its nodes, what replaces it, and whether the value, its key or nothing is left"""


def altered(value: Any, changes: list[tuple[int, Any, str]]) -> Any:
    """A copy of a JSON value with some of its nodes replaced."""
    value = json.loads(json.dumps(value))
    for number, replacement, kind in changes:
        if not (places := list(_places(value))):
            break
        container, key = places[number % len(places)]
        if kind == "value":
            container[key] = replacement
        elif kind == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[str(replacement)] = container.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, part in list(entries):
        yield value, key
        yield from _places(part)


def to_bytes(value: Any) -> bytes:
    """JSON as a hostile writer would write it: lone surrogates stay."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@contextmanager
def answers_in_time() -> Iterator[None]:
    """Raises TimeoutError where the block takes more than HANG_S seconds."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def is_sentence(error: Exception) -> bool:
    """Whether an error's text is one line that says something."""
    text = str(error)
    return 10 < len(text) < 5000 and "\n" not in text and "Traceback" not in text
