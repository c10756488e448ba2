"""Rank 0's end of a tracker's process: sends without waiting, and counts what was lost.

The two are connected by a socket of packets, each of which is sent whole or not at all, so this process needs no
thread (it forks data workers) and no buffer of its own.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ggcn.tracking.base import TrackedRun
from ggcn.tracking.messages import LONGEST, Message, Progress

log = logging.getLogger(__name__)

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""what the libraries would send to their makers, unless the user has set these variables"""


class TrackerProcess:
    """A tracker in a process of its own. No method raises, and none but `wait` waits."""

    def __init__(self, name: str, run: TrackedRun, attempt: int) -> None:
        """attempt: number of roll-backs so far, each of which changes what the same steps compute."""
        self.name = name
        self.progress = Progress()
        self.sent = self.refused = 0
        self.warned = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection = ours
        with theirs:
            self.process = _spawn(name, theirs.fileno(), Path(run.folder) / "logs")
        self._send(json.dumps([asdict(run), attempt]).encode())

    def send(self, message: Message) -> None:
        """Sends a record, or drops it where the tracker's process is gone or does not keep up."""
        self._receive()
        if self._send(message.encode()):
            self.sent += 1
        else:
            self.refused += 1
        self._warn()

    @property
    def lost(self) -> int:
        """Records that the tracker does not and will not have."""
        return self.refused + self.progress.dropped + self.progress.failed

    def finish(self, outcome: str) -> None:
        """Says that there will be no more records."""
        self._send(Message("finish", outcome=outcome).encode())

    def wait(self, seconds: float) -> None:
        """Waits for the process to end, and warns of records that it lost. One that takes longer is left alone, for
        a library may be at work on a database; it ends by itself (`child.LINGER_S`)."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._receive()
        self.connection.close()
        undelivered = self.sent - self.progress.done - self.progress.failed - self.progress.dropped
        if self.lost or undelivered:
            log.warning(
                "tracker %s lost %d of %d records (%s)",
                self.name,
                self.lost + undelivered,
                self.sent + self.refused,
                self._why(),
            )

    def _why(self) -> str:
        if self.progress.error:
            return self.progress.error
        code = self.process.poll()
        return f"its process ended by itself with exit code {code}" if code and code > 0 else "too slow"

    def _send(self, data: bytes) -> bool:
        try:
            self.connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return True
        except OSError:  # it does not keep up (EAGAIN), or is gone (EPIPE)
            return False

    def _receive(self) -> None:
        """Reads the newest numbers."""
        try:
            while data := self.connection.recv(LONGEST, socket.MSG_DONTWAIT):
                self.progress = Progress(**json.loads(data))
        except (OSError, ValueError, TypeError):
            return

    def _warn(self) -> None:
        """Warns the first time that something fails."""
        if not self.warned and (self.lost or self.progress.error):
            self.warned = True
            log.warning(
                "tracker %s loses records (%s); training goes on, and metrics.jsonl has them all; see logs/%s",
                self.name,
                self._why(),
                log_name(self.name),
            )


def log_name(tracker: str) -> str:
    """The name of a tracker's log in RUN/logs."""
    return f"tracker_{tracker.replace(':', '.')}.log"


def _spawn(name: str, descriptor: int, logs: Path) -> "subprocess.Popen[bytes]":
    """Starts the process, in a session of its own: a terminal's Ctrl-C is not meant for it."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / log_name(name)).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ggcn.tracking.child", name, str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[descriptor],
            env={**QUIET, **os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def wait_all(processes: list[TrackerProcess], seconds: float) -> None:
    """Waits for all of them, `seconds` in total."""
    end = time.monotonic() + seconds
    for process in processes:
        process.wait(max(end - time.monotonic(), 0.1))
