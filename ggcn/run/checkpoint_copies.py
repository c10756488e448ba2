"""Copies of complete checkpoints at a URL, made next to the training.

URL/NAME/config.yaml                the frozen config of run NAME, so that the copy can be used like the run
URL/NAME/checkpoints/step_N/...     COMPLETE last: a folder without it does not count
URL/NAME/checkpoints/latest         name of the newest
"""

import hashlib
import json
import logging
import random
import re
import time
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from ggcn import files, progress
from ggcn.errors import UserError
from ggcn.redact import redact
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir

log = logging.getLogger(__name__)

RECORD = "copied"
"""file in checkpoints/ that names the copies that the run made: only these are removed again"""
MAX_DELAY_S = 300.0
LAST_TRIES = 5
"""attempts to copy the last checkpoint of a finished run"""
LAST_DELAY_S = 10.0
"""longest time between two of them"""


class CheckpointCopies:
    """A thread of rank 0 that copies the newest complete checkpoint, and removes copies of pruned ones.

    A failure is logged and tried again; it never stops training.
    """

    def __init__(self, run: RunDir, url: str, delay_s: float = 1.0) -> None:
        """`delay_s`: seconds from a first failure to the next try; they double up to MAX_DELAY_S. Raises UserError
        where fsspec cannot use the URL."""
        self.run, self.url, self.delay_s = run, url, delay_s
        self.store, root = _store(url)
        self.target = f"{root.rstrip('/')}/{run.path.name}"
        self.current: Path | None = None
        """the checkpoint that is being copied, and must not be pruned"""
        self._next: Path | None = None
        self._finishing = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def offer(self, folder: Path) -> None:
        """Copies a complete checkpoint once the one being copied is done, unless a newer one is offered before."""
        with self._changed:
            self._next = folder
            if self._thread is None:
                self._thread = Thread(target=self._run, name="checkpoint copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> None:
        """Returns when the last checkpoint is copied, or could not be after LAST_TRIES more attempts."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            thread = self._thread
        while thread and thread.is_alive():
            thread.join(0.5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self.current, self._next = self._next, None
                if self.current is None:
                    self._thread = None
                    return
            self._copy_until_done(self.current)

    def _copy_until_done(self, folder: Path) -> None:
        tries, delay_s = 0, self.delay_s
        while folder.is_dir():  # else a rollback has removed it
            try:
                self._copy(folder)
                return
            except Exception as error:  # object stores raise errors of any type
                tries = tries + 1 if self._finishing else 0
                level = logging.WARNING if delay_s == self.delay_s or tries == LAST_TRIES else logging.INFO
                again = "given up" if tries == LAST_TRIES else "training goes on, and it is tried again"
                log.log(
                    level, "%s was not copied to %s (%s); %s", folder.name, redact(self.url), error, again
                )
            if tries == LAST_TRIES or self._replaced_within(delay_s):
                return
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    def _replaced_within(self, seconds: float) -> bool:
        """Whether another checkpoint is offered within about so many seconds; the jitter keeps runs that failed
        together from trying again together."""
        end = time.monotonic() + seconds * random.SystemRandom().uniform(0.5, 1.5)
        with self._changed:
            while self._next is None:
                if self._finishing:
                    end = min(end, time.monotonic() + LAST_DELAY_S)
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
                progress.report()
            return True

    def _copy(self, folder: Path) -> None:
        """Copies a checkpoint that is not there already, COMPLETE last, then the files that point to it."""
        began, target = time.monotonic(), f"{self.target}/checkpoints/{folder.name}"
        record = CopyRecord(self.run.checkpoints / RECORD, f"{self.url}/{self.run.path.name}")
        record.add(folder.name)
        complete = files.read_bytes(folder / "COMPLETE")
        marker = f"{target}/COMPLETE"
        if not self.store.exists(marker) or self.store.cat_file(marker) != complete:
            if self.store.exists(marker):  # of another attempt, before a rollback
                self.store.rm_file(marker)
            for path in (*checkpoint.meta(folder)["files"], "meta.json"):
                self._put(folder / path, f"{target}/{path}")
            self._put(self.run.config, f"{self.target}/config.yaml")
            self._pipe(marker, complete)
            seconds = time.monotonic() - began
            log.info("copied %s to %s in %.2f s", folder.name, redact(self.url), seconds)
        self._pipe(f"{self.target}/checkpoints/latest", f"{folder.name}\n".encode())
        self._prune(record)

    def _put(self, source: Path, target: str) -> None:
        """Copies a file. Raises OSError when another size arrives."""
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.store.put_file(str(source), target)
        progress.report()
        if (size := self.store.size(target)) != (expected := source.stat().st_size):
            raise OSError(f"{source.name} has {size} bytes there, not {expected}")

    def _pipe(self, target: str, content: bytes) -> None:
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.store.pipe_file(target, content)

    def _prune(self, record: "CopyRecord") -> None:
        """Removes the copies that this run made of checkpoints that it no longer has."""
        for name in record.names():
            if (self.run.checkpoints / name).is_dir():
                continue
            folder = f"{self.target}/checkpoints/{name}"
            if self.store.exists(f"{folder}/COMPLETE"):
                self.store.rm_file(f"{folder}/COMPLETE")  # first, so that no part counts as a checkpoint
            if self.store.exists(folder):
                self.store.rm(folder, recursive=True)
            record.remove(name)
            progress.report()


class CopyRecord:
    """The names of the copies that a run made at one place, in a file of the run."""

    def __init__(self, path: Path, place: str) -> None:
        """`place`: a URL, of which the file has a hash only, since it may hold a password."""
        self.path, self.place = path, hashlib.sha256(place.encode()).hexdigest()

    def names(self) -> list[str]:
        """The names; none where the file cannot be read."""
        try:
            value = json.loads(files.read_bytes(self.path))
            names = value["copies"] if value["to"] == self.place else []
            return [name for name in names if re.fullmatch(rf"{checkpoint.PREFIX}[0-9]+", name)]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return []

    def add(self, name: str) -> None:
        """Adds a name, before anything is written under it."""
        if name not in (names := self.names()):
            self._write([*names, name])

    def remove(self, name: str) -> None:
        """Removes a name of which nothing is left."""
        self._write([other for other in self.names() if other != name])

    def _write(self, names: list[str]) -> None:
        files.write_json(self.path, {"to": self.place, "copies": names})


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError without the plug-in for it."""
    try:
        import fsspec  # type: ignore[import-untyped]  # comes with torch, which does not promise it

        store, path = fsspec.core.url_to_fs(url)
        return store, str(path)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"checkpoint.copy_to={url} cannot be used ({error}); install the fsspec plug-in for it, or name another "
            "place"
        ) from None
