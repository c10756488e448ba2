"""The log of a rank: a file of its own, and rank 0's warnings on the terminal."""

import logging
import sys
from pathlib import Path

from ggcn import redact
from ggcn.console import speak_utf8


def configure(path: Path, rank: int) -> None:
    """Sends this process's log to the file at `path`, and rank 0's warnings to the terminal too."""
    speak_utf8()
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    line = f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"
    root.handlers = [_handler(file, line, logging.INFO)]
    if rank == 0:
        terminal = logging.StreamHandler(sys.stderr)
        root.addHandler(_handler(terminal, "%(levelname)s: %(message)s", logging.WARNING))
    logging.captureWarnings(True)


def _handler(handler: logging.Handler, line: str, level: int) -> logging.Handler:
    handler.setFormatter(redact.Formatter(line))
    handler.setLevel(level)
    return handler
