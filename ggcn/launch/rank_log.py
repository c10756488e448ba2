"""The log of a rank: a file of its own, and rank 0's warnings on the terminal."""

import logging
import sys
from pathlib import Path

from ggcn import redact
from ggcn.console import speak_utf8


def configure(path: Path, rank: int, own_terminal: bool = False) -> None:
    """Sends this process's log to the file at `path`, and rank 0's warnings to the terminal too.

    `own_terminal`: no launcher of ours reads the ranks' error files, so every rank prints its errors.
    """
    speak_utf8()
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    line = f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"
    root.handlers = [_handler(file, line, logging.INFO)]
    if rank == 0 or own_terminal:
        terminal = logging.StreamHandler(sys.stderr)
        line = "%(levelname)s: %(message)s" if rank == 0 else f"%(levelname)s: rank {rank}: %(message)s"
        root.addHandler(_handler(terminal, line, logging.ERROR if rank else logging.WARNING))
    logging.captureWarnings(True)


def _handler(handler: logging.Handler, line: str, level: int) -> logging.Handler:
    handler.setFormatter(redact.Formatter(line))
    handler.setLevel(level)
    return handler
