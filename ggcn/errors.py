"""Errors that a user causes and can mend."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """What went wrong and how to mend it, in one sentence; shown without a traceback."""


def fail(error: UserError) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main`.

    A UserError, and what the system refuses (a full disk, a folder that may not be written), becomes one line
    and exit code 2; Ctrl-C exit code 130.
    """
    try:
        raise SystemExit(main() or 0)
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(UserError(f"{error.strerror or error}: {error.filename}" if error.filename else str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
