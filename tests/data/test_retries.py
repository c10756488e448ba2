"""Which errors are retried, after which delays."""

# mypy: allow-untyped-defs

import asyncio
import concurrent.futures
import errno
import http.client
import random
import ssl
import time
import zlib
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from streams import first, memory_store

from ggcn.data import retries
from ggcn.errors import TransientError, UserError


def named(name: str, base: type[Exception] = Exception, **fields: Any) -> Exception:
    """An error of a library that is not installed here: kinds are told by names, statuses and answers."""
    return type(name, (base,), fields)("it says so")


def answer(status: int, code: str = "", **headers: str) -> dict[str, Any]:
    """What botocore's ClientError has in `response`."""
    return {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}


TRANSIENT = [
    named("EndpointConnectionError"),
    named("ClientError", response=answer(503, "SlowDown")),
    named("ClientError", response=answer(400, "RequestTimeout")),
    named("ClientResponseError", status=429),
    named("ServerDisconnectedError"),
    named("ServiceUnavailable", code=503),
    named("HttpResponseError", status_code=500),
    asyncio.TimeoutError(),
    concurrent.futures.TimeoutError(),
    http.client.IncompleteRead(b"", 5),
    ssl.SSLError(1, "bad record"),
    zlib.error("incorrect header"),
    RuntimeError("Session is closed"),
    EOFError(),
    ConnectionResetError(),
    OSError(errno.ESTALE, "stale"),
]
PERMANENT_STATUSES = [
    named("NoCredentialsError"),
    named("DefaultCredentialsError"),
    named("ClientError", response=answer(403, "AccessDenied")),
    named("ClientError", response=answer(404, "NoSuchKey")),
    named("ResourceNotFoundError", status_code=404),
    named("ClientAuthenticationError"),
    named("Forbidden", code=403),
    FileNotFoundError("x"),
    PermissionError("x"),
    NotADirectoryError("x"),
    OSError(errno.ENOSPC, "full"),
    ssl.SSLCertVerificationError(1, "self-signed"),
    ValueError("no such bucket name"),
    NotImplementedError(),
    http.client.InvalidURL("no port"),
]


class Failing(MemoryFileSystem):
    """fsspec's memory, whose next reads of shards fail."""

    protocol = "failing"
    store = MemoryFileSystem.store
    error: Exception = OSError()
    left = 0
    requests = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("failing://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
        Failing.requests += 1
        Failing.left -= 1
        if Failing.left >= 0:
            raise Failing.error
        data: bytes = super().cat_file(path, start, end, **rest)
        return data


@pytest.fixture
def failing(folder: Path) -> str:
    fsspec.register_implementation("failing", Failing, clobber=True)
    memory_store(folder)
    Failing.requests = 0
    return "failing://set"


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_a_store_that_fails_for_a_while_is_retried_whatever_it_raises(folder, failing, error):
    Failing.error, Failing.left = error, 2
    assert first(failing) == first(folder)
    Failing.error, Failing.left, Failing.requests = error, 10**9, 0
    with pytest.raises(TransientError, match=r"failing://set/00000\d.tar cannot be read \(.+\); .*network"):
        first(failing)
    assert Failing.requests == 3


@pytest.mark.parametrize("error", PERMANENT_STATUSES, ids=lambda error: type(error).__name__)
def test_permanent_errors_are_not_retried(failing, error):
    Failing.error, Failing.left = error, 10**9
    with pytest.raises(UserError, match=r"failing://set/00000\d.tar cannot be read") as refused:
        first(failing)
    assert not isinstance(refused.value, TransientError)
    assert Failing.requests == 1


def test_a_bug_keeps_its_traceback(failing):
    Failing.error, Failing.left = TypeError("no such argument"), 10**9
    with pytest.raises(TypeError):
        first(failing)


def test_control_characters_from_a_server_are_escaped(failing):
    Failing.error, Failing.left = OSError("\x1b[2J\r\nerror: all is well\u202e" + "x" * 10**6), 10**9
    with pytest.raises(UserError) as refused:
        first(failing)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 700


def paused(monkeypatch: pytest.MonkeyPatch, error: Exception, count: int, backoff: float) -> list[float]:
    """The pauses, in seconds, before a read that keeps failing is given up."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def read() -> None:
        raise error

    with pytest.raises(UserError):
        retries.with_retries(read, "url", count, backoff)
    return pauses


def test_delays_double_differ_between_ranks_and_use_no_random_stream_of_the_run(monkeypatch):
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    error = ConnectionResetError()
    one, other = paused(monkeypatch, error, 5, 0.5), paused(monkeypatch, error, 5, 0.5)
    assert one != other
    assert all(0.5 <= pause / (0.5 * 2**n) <= 1.5 for n, pause in enumerate(one))
    assert max(paused(monkeypatch, error, 3000, 0.5)) == retries.MAX_DELAY_S
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert states == after


def test_a_short_retry_after_of_a_server_is_respected(monkeypatch):
    for headers in ({"Retry-After": "7"}, {"retry-after": "7"}):
        assert paused(monkeypatch, named("Busy", status=503, headers=headers), 1, 0.01) == [7]
    assert paused(
        monkeypatch, named("ClientError", response=answer(503, **{"retry-after": "7"})), 1, 0.01
    ) == [7]
    for useless in ("86400", "soon", "-5", "9" * 400, ""):
        (pause,) = paused(monkeypatch, named("Busy", status=503, headers={"Retry-After": useless}), 1, 0.01)
        assert pause < 1
