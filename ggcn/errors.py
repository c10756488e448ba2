"""Errors that the user can fix, and errors that a restart may fix."""

import errno

from ggcn.redact import redact


class UserError(Exception):
    """What went wrong and how to fix it, in one sentence; shown without a traceback, and without credentials."""

    def __str__(self) -> str:
        """The sentence, where passwords and signatures in URLs are hidden."""
        return redact(super().__str__())


class TransientError(UserError):
    """An error that may not occur after a restart: a server that is down, a node that ran out of memory."""


PERMANENT_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EROFS,
}
"""errors of the system that last until a person fixes their cause"""


def is_transient(error: BaseException) -> bool:
    """Whether a restart may help after `error`, a UserError or OSError, or the OSError that it was raised from."""
    if isinstance(error, OSError):
        return error.errno not in PERMANENT_ERRNOS
    cause = error.__cause__
    return isinstance(error, TransientError) or (isinstance(cause, OSError) and is_transient(cause))
