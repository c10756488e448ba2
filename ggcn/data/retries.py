"""Retries of failed reads: which errors are transient, how long to wait, and the message of the last failure."""

import errno
import http.client
import random
import re
import resource
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ggcn.errors import PERMANENT_ERRNOS, TransientError, UserError
from ggcn.redact import shard_folder

MAX_DELAY_S = 30
PERMANENT_STATUSES = range(300, 500)
"""HTTP statuses that a further request does not change, except for RETRYABLE_STATUSES"""
RETRYABLE_STATUSES = (408, 425, 429)
USAGE_ERRORS = (ValueError, LookupError, NotImplementedError, ImportError, http.client.InvalidURL)
ACCESS_ERRORS = re.compile(
    "credential|authentica|unauthorized|forbidden|denied|nosuch|notfound", re.IGNORECASE
)
RETRYABLE_CODES = re.compile("timeout|throttl|slowdown|toomany|busy", re.IGNORECASE)
FILE_LIMIT_ERRNOS = (errno.EMFILE, errno.ENFILE)
T = TypeVar("T")


def with_retries(read: Callable[[], T], url: str, retries: int, backoff: float) -> T:
    """Returns `read()`, retried after a delay when it fails; delays begin at `backoff` seconds and about double.

    Which errors are transient is decided by their type, since object stores raise many that are no OSError.
    Raises TransientError naming `url` when `retries` further attempts fail too, UserError when waiting cannot help.
    """
    for attempt in range(retries + 1):
        try:
            return read()
        except (UserError, MemoryError, TypeError, AttributeError, NameError, AssertionError):
            raise  # already a message, or a bug, whose traceback is needed
        except Exception as error:
            permanent, inner = _not_retryable(error), _cause(error)
            if attempt == retries or permanent:
                needs_user = _errno(inner) in (*PERMANENT_ERRNOS, *FILE_LIMIT_ERRNOS)
                text = f"{shard_folder(url)} cannot be read ({describe(error)}); {_advice(inner)}"
                raise (UserError if permanent or needs_user else TransientError)(text) from None
            time.sleep(retry_delay(error, backoff * 2 ** min(attempt, 30)))
    raise AssertionError("unreachable")


def retry_delay(error: Exception, seconds: float) -> float:
    """How long to wait after a failed read, in seconds: half to one and a half times `seconds`, 30 at most.

    The jitter keeps ranks that failed together from retrying together. A server may ask for more, within that limit.
    The random numbers are the system's, so that no draw of a run depends on a failure.
    """
    requested = _retry_after(error)
    jittered = seconds * random.SystemRandom().uniform(0.5, 1.5)
    return min(max(jittered, requested if requested <= MAX_DELAY_S else 0), MAX_DELAY_S)


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks for, 0 if it does not say."""
    headers = getattr(error, "headers", None) or _response_metadata(error).get("HTTPHeaders", {})
    try:
        text = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    except AttributeError:
        return 0
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0


def _response_metadata(error: Exception) -> dict[str, Any]:
    """The metadata of the server's response in a botocore ClientError; empty for other errors."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _http_status(error: Exception) -> int | None:
    """The HTTP status that an error stands for, as the libraries of the common object stores name it."""
    names = ("code", "status", "status_code")
    candidates = [
        _response_metadata(error).get("HTTPStatusCode"),
        *(getattr(error, name, None) for name in names),
    ]
    return next((int(value) for value in candidates if isinstance(value, int) and 100 <= value < 600), None)


def _cause(error: Exception) -> Exception:
    """The error of the connection that urllib wrapped, or `error` itself."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, Exception) else error


def _errno(error: Exception) -> int | None:
    """The errno of an OSError; None for others, and for TLS errors, which have numbers of their own."""
    return error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None


def _not_retryable(error: Exception) -> bool:
    """Whether a retry cannot help: the file is missing or forbidden, or the request is wrong."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if RETRYABLE_CODES.search(str(code)):
        return False  # S3 sends these with status 400, bad request
    status = _http_status(error)
    if status is not None:
        return status in PERMANENT_STATUSES and status not in RETRYABLE_STATUSES
    error = _cause(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    if isinstance(error, OSError):
        missing = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        return isinstance(error, missing) or _errno(error) in PERMANENT_ERRNOS
    wrong_usage = isinstance(error, USAGE_ERRORS) and not isinstance(error, UnicodeError)
    return wrong_usage or ACCESS_ERRORS.search(type(error).__name__) is not None


def describe(error: Exception) -> str:
    """An error's text for a terminal, 500 characters at most and control characters escaped: it may be a server's."""
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    text = text.strip(": ") or type(error).__name__
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:500])
    return shown + ("..." if len(text) > 500 else "")


def _advice(error: Exception) -> str:
    """How to fix the cause of a failed read."""
    if isinstance(error, OSError) and _errno(error) in FILE_LIMIT_ERRNOS:
        return limit_advice(error)
    if _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        return (
            "free some space there, lower data.cache_gb, or name another disk with data.cache_dir or TMPDIR"
        )
    return "restore it, or check the path and the network"


def limit_advice(error: OSError) -> str:
    """Which limit of the system a loader's error ran into, and which settings need less of it."""
    fewer = "lower data.workers or data.prefetch"
    if error.errno in FILE_LIMIT_ERRNOS:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"a process may have {most} files open: raise that limit (ulimit -n), or {fewer}"
    if error.errno == errno.EAGAIN:
        return f"the user may have no more processes: raise that limit (ulimit -u), or {fewer}"
    if error.errno == errno.ENOSPC:
        return f"/dev/shm, where processes share memory, is full: enlarge it, or {fewer}"
    return f"there is no memory left: ask for more, or {fewer}"
