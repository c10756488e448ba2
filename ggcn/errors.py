"""Errors that a user causes and can mend, and those that may pass by themselves."""

import errno

from ggcn.redact import redact


class UserError(Exception):
    """What went wrong and how to fix it, in one sentence; shown without a traceback, and without credentials."""

    def __str__(self) -> str:
        """The sentence, where passwords and signatures in URLs are hidden."""
        return redact(super().__str__())


class TransientError(UserError):
    """What may be over when the run is started again: a server that is down, a node's memory that ran out."""


PERMANENT_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EROFS,
}
"""what the system refuses until a person mends it"""


def is_transient(error: BaseException) -> bool:
    """Whether starting again may help after a UserError or OSError, or what it was raised from."""
    if isinstance(error, OSError):
        return error.errno not in PERMANENT_ERRNOS
    cause = error.__cause__
    return isinstance(error, TransientError) or (isinstance(cause, OSError) and is_transient(cause))
