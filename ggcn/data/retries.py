"""Reading again after a failure: which errors may pass by themselves, how long to wait, and what to say in the end."""

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

LONGEST_PAUSE = 30  # seconds
HOPELESS = range(300, 500)  # HTTP answers that asking again does not change ...
BUSY = (408, 425, 429)  # ... but for these
MISTAKES = (ValueError, LookupError, NotImplementedError, ImportError, http.client.InvalidURL)
REFUSALS = re.compile("credential|authentica|unauthorized|forbidden|denied|nosuch|notfound", re.IGNORECASE)
PASSING_CODES = re.compile("timeout|throttl|slowdown|toomany|busy", re.IGNORECASE)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
T = TypeVar("T")


def with_retries(read: Callable[[], T], url: str, retries: int, backoff: float) -> T:
    """`read()`, again after a pause when it fails, each pause (seconds) about twice the last.

    Which errors may pass is decided by their kind, since object stores raise many that are no OSError.
    Raises Outage naming `url` when `retries` further attempts fail too, UserError when waiting cannot help.
    """
    for attempt in range(retries + 1):
        try:
            return read()
        except (UserError, MemoryError, TypeError, AttributeError, NameError, AssertionError):
            raise  # already a sentence, or a fault of the program, whose traceback is wanted
        except Exception as error:
            hopeless, inner = _hopeless(error), _reason(error)
            if attempt == retries or hopeless:
                lasting = _errno(inner) in (*PERMANENT_ERRNOS, *TOO_MANY_FILES)
                text = f"{shard_folder(url)} cannot be read ({said(error)}); {_mend(inner)}"
                raise (UserError if hopeless or lasting else TransientError)(text) from None
            time.sleep(pause(error, backoff * 2 ** min(attempt, 30)))
    raise AssertionError("unreachable")


def pause(error: Exception, seconds: float) -> float:
    """How long to wait after a failed read, in seconds: half to one and a half times `seconds`, 30 at most.

    Ranks that failed together do not come back together. A server may ask for more, within that limit. The
    random numbers are the system's, so that no draw of a run depends on a failure.
    """
    asked = _retry_after(error)
    jittered = seconds * random.SystemRandom().uniform(0.5, 1.5)
    return min(max(jittered, asked if asked <= LONGEST_PAUSE else 0), LONGEST_PAUSE)


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks for, 0 if it does not say."""
    headers = getattr(error, "headers", None) or _answer(error).get("HTTPHeaders", {})
    try:
        text = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    except AttributeError:
        return 0
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0


def _answer(error: Exception) -> dict[str, Any]:
    """What a botocore ClientError says of the server's answer."""
    response = getattr(error, "response", None)
    answer = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return answer if isinstance(answer, dict) else {}


def _status(error: Exception) -> int | None:
    """The HTTP status that an error stands for, as the libraries of the common object stores name it."""
    names = ("code", "status", "status_code")
    found = [_answer(error).get("HTTPStatusCode"), *(getattr(error, name, None) for name in names)]
    return next((int(value) for value in found if isinstance(value, int) and 100 <= value < 600), None)


def _reason(error: Exception) -> Exception:
    """What the connection raised, where urllib wraps that."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, Exception) else error


def _errno(error: Exception) -> int | None:
    """The system's number of an error; those of TLS are of another list."""
    return error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None


def _hopeless(error: Exception) -> bool:
    """Whether asking again cannot help: what is missing, forbidden, or was never a right question."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if PASSING_CODES.search(str(code)):
        return False  # S3 calls these 400, a faulty request
    status = _status(error)
    if status is not None:
        return status in HOPELESS and status not in BUSY
    error = _reason(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    if isinstance(error, OSError):
        missing = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        return isinstance(error, missing) or _errno(error) in PERMANENT_ERRNOS
    mistaken = isinstance(error, MISTAKES) and not isinstance(error, UnicodeError)
    return mistaken or REFUSALS.search(type(error).__name__) is not None


def said(error: Exception) -> str:
    """An error's text for a terminal: without what a server may have put into it to look like something else."""
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    text = text.strip(": ") or type(error).__name__
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:500])
    return shown + ("..." if len(text) > 500 else "")


def _mend(error: Exception) -> str:
    if isinstance(error, OSError) and _errno(error) in TOO_MANY_FILES:
        return limits(error)
    if _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        return (
            "free some space there, lower data.cache_gb, or name another disk with data.cache_dir or TMPDIR"
        )
    return "restore it, or check the path and the network"


def limits(error: OSError) -> str:
    """Which limit of the system an error of a loader ran into, and which settings ask for less."""
    fewer = "lower data.workers or data.prefetch"
    if error.errno in TOO_MANY_FILES:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"a process may have {most} files open: raise that limit (ulimit -n), or {fewer}"
    if error.errno == errno.EAGAIN:
        return f"the user may have no more processes: raise that limit (ulimit -u), or {fewer}"
    if error.errno == errno.ENOSPC:
        return f"/dev/shm, where processes share memory, is full: enlarge it, or {fewer}"
    return f"there is no memory left: ask for more, or {fewer}"
