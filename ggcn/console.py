"""How a command starts and ends: UTF-8, one sentence for an error, exit codes; and what users type to start one."""

import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ggcn.errors import UserError
from ggcn.limits import explained

SCRIPT = "ggcn"
"""the console script, which has all commands as subcommands"""
_FILES = {
    "launch": "cluster/launch.py",
    "status": "cluster/status.py",
    "inspect": "tools/inspect_checkpoint.py",
}


def command_line(name: str) -> str:
    """How to start a subcommand of `ggcn`: by the console script where this process was started by it or where there
    is no checkout, else by the checkout's script."""
    checkout = Path(__file__).parent.resolve().parent
    if sys.argv[0].startswith(f"{SCRIPT} ") or not (checkout / _FILES["launch"]).is_file():
        return f"{SCRIPT} {name}"
    return f"python {_script(name)}"


def this_command() -> str:
    """The command that runs, as text to type into a shell again."""
    program, *args = sys.argv
    name = program.removeprefix(f"{SCRIPT} ")
    return shlex.join([*([SCRIPT, name] if name != program else ["python", program]), *args])


def document_commands(text: str) -> str:
    """A command's help text, written for a checkout's scripts, with the console script in their place."""
    return re.sub(
        r"(?:python )?(?:cluster|tools)/(\w+)\.py", lambda result: f"{SCRIPT} {_subcommand(result[1])}", text
    )


def _script(name: str) -> str:
    return _FILES.get(name, f"tools/{name.replace('-', '_')}.py")


def _subcommand(stem: str) -> str:
    return stem.removesuffix("_checkpoint").replace("_", "-")


def speak_utf8() -> None:
    """Makes the output of this process UTF-8 whatever its locale is; invalid bytes in file names appear as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _in_utf8() -> None:
    """Restarts this command in Python's UTF-8 mode where the locale is not UTF-8: else libraries would fail to write
    file names that are not ASCII."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that it starts, too
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 (this command again)
    speak_utf8()


def fail(error: UserError) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _flush_output() -> None:
    """Flushes stdout while its errors can still be caught: at exit Python would only report them."""
    try:
        if sys.stdout:  # None where the shell closed it
            sys.stdout.flush()
    except OSError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python flushes once more when it ends
        raise


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main`, in UTF-8 whatever the locale.

    A UserError, and what the system refuses (a full disk, a folder that may not be written, a limit on open
    files), becomes one line and exit code 2; Ctrl-C exit code 130; a reader of the output that has
    closed it, such as `head`, exit code 141 without a message.
    """
    _in_utf8()
    try:
        try:
            raise SystemExit(main() or 0)
        finally:
            _flush_output()
    except UserError as error:
        fail(error)
    except BrokenPipeError:  # Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except RuntimeError as error:
        if limit := explained(error):
            fail(limit)
        raise
    except OSError as error:
        if limit := explained(error):
            fail(limit)
        reason = error.strerror or str(error)
        fail(UserError(f"{reason}: {error.filename}" if error.filename else reason))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
