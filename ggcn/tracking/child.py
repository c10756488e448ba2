"""The process of one tracker: `python -m ggcn.tracking.child NAME SOCKET`. See `relay` for the other end.

A thread receives messages into a bounded queue, so that the sender is never held up by the tracker; the main thread
hands them to the tracker. What the tracker has recorded is kept in RUN/trackers/NAME.json: the steps that a resumed
run computes again, to the same bits, are not recorded twice.
"""

import fcntl
import json
import logging
import os
import queue
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

from ggcn.json_lines import parse
from ggcn.tracking import registry
from ggcn.tracking.base import FOLDER, TrackedRun, Tracker
from ggcn.tracking.messages import LONGEST, Message, Progress, decode

log = logging.getLogger(__name__)

CAPACITY = 10_000
"""messages that wait for the tracker at most; newer ones are dropped"""
LINGER_S = 120.0
"""seconds after the last message in which the tracker may still record what waits"""
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0
"""seconds between attempts to start a tracker, doubled after each"""


class Inbox:
    """Messages received from rank 0, and what became of them."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.waiting: queue.Queue[Message] = queue.Queue(CAPACITY)
        self.progress = Progress()
        self.finishing = Event()
        """set once no more messages will come"""
        Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        while True:
            try:
                data = self.connection.recv(LONGEST)
            except (
                ConnectionResetError
            ):  # comes before what rank 0 sent last, where it ended without reading all
                continue
            message = decode(data) if data else Message("finish", outcome="failed")  # rank 0 is gone
            if message.kind == "finish":
                self.finishing.set()
                end = Timer(LINGER_S, os._exit, (1,))
                end.daemon = True
                end.start()
                return self.waiting.put(message)
            try:
                self.waiting.put_nowait(message)
            except queue.Full:
                self.progress.dropped += 1

    def report(self, done: int = 0, failed: int = 0, error: BaseException | None = None) -> None:
        """Tells rank 0 what was recorded; it may be gone, or not listen for a while."""
        self.progress.done += done
        self.progress.failed += failed
        if error is not None:
            log.warning("failed", exc_info=error)
            self.progress.error = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        with suppress(OSError):
            self.connection.send(self.progress.encode(), socket.MSG_DONTWAIT)


class Recorded:
    """The newest step of each kind of record that the tracker has, as a file of the run."""

    def __init__(self, path: Path, attempt: int) -> None:
        self.path = path
        known = parse(path.read_bytes()) if path.exists() else None
        self.steps: dict[str, Any] = (
            known if known and known.get("attempt") == attempt else {"attempt": attempt}
        )

    def has(self, message: Message) -> bool:
        """Whether an earlier process recorded this step already."""
        last = self.steps.get(message.kind)
        return isinstance(last, int) and message.step <= last

    def add(self, message: Message) -> None:
        """Notes that the tracker has a message."""
        self.steps[message.kind] = message.step
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.steps), encoding="utf-8")
        temporary.replace(self.path)


def start(name: str, run: TrackedRun, inbox: Inbox) -> Tracker | None:
    """The started tracker; tries again and again until rank 0 is done, and then returns None."""
    delay = FIRST_RETRY_S
    while True:
        try:
            tracker = registry.create(name)
            tracker.start(run)
            return tracker
        except Exception as error:  # whatever a library or a user's class raises
            inbox.report(error=error)
        if inbox.finishing.wait(delay):
            return None
        delay = min(2 * delay, LAST_RETRY_S)


def serve(tracker: Tracker, inbox: Inbox, recorded: Recorded) -> None:
    """Hands over messages until the one that ends the recording."""
    while (message := inbox.waiting.get()).kind != "finish":
        if recorded.has(message):
            inbox.report(done=1)
            continue
        try:
            if message.path:
                tracker.image(message.step, message.name, Path(message.path))
            else:
                tracker.log(message.step, message.metrics)
            recorded.add(message)
            inbox.report(done=1)
        except Exception as error:
            inbox.report(failed=1, error=error)
    tracker.finish(message.outcome)


def main() -> None:
    """Records until rank 0 says that it is done, or is gone."""
    name, descriptor = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the ranks; rank 0 says how they ended
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    connection = socket.socket(fileno=int(descriptor))
    run, attempt = json.loads(connection.recv(LONGEST))
    inbox = Inbox(connection)
    file = Path(run["folder"]) / FOLDER / f"{name.replace(':', '.')}.json"
    with file.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process of the attempt before may still be at work
        tracker = start(name, TrackedRun(**run), inbox)
        if tracker is not None:
            serve(tracker, inbox, Recorded(file, attempt))


if __name__ == "__main__":
    main()
