"""One save in the background: every rank writes its files in a thread, then rank 0 commits all of them as one.

Ranks tell rank 0 what they wrote through the key-value store that they share. A collective would not do: it has to come
in the same order on all ranks, and their training goes on with collectives of its own meanwhile.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, get_ident, get_native_id
from typing import Any

import torch

from ggcn import files, progress
from ggcn.distributed import process_group
from ggcn.run import checkpoint

NICE = 10
"""priority of a thread that saves, as of the command nice: training has 0"""
POLL_S = 0.05
"""seconds between two questions of rank 0 whether another rank has written its files"""

Entries = dict[str, dict[str, Any]]
"""{path in the checkpoint: {"bytes": size, "sha256": of the file}}"""


class BackgroundSave:
    """The thread of one rank that saves one checkpoint."""

    def __init__(
        self,
        key: str,
        folder: Path,
        contents: dict[str, Any],
        commit: Callable[[Entries], None],
        began: float,
    ) -> None:
        """Starts to write `contents` ({path: value}) to `folder`, which is there already; rank 0 then calls `commit`
        with what all ranks wrote. `key`: the same for all ranks and for no other save. `began`: when the save began, on
        time.monotonic's clock."""
        self.key, self.folder, self.contents, self.commit = key, folder, contents, commit
        self.began = began
        self.error: Exception | None = None
        self.seconds = 0.0
        """from the begin of the save to the end of this rank's part in it"""
        self._last_sign, self._abandoned = time.monotonic(), Event()
        self._missing = list(range(1, torch.distributed.get_world_size()))
        self.thread = Thread(target=self._run, name="checkpoint", daemon=True)
        self.thread.start()

    @property
    def done(self) -> bool:
        """Whether this rank's part is over, on rank 0 the commit included; `error` says whether it failed."""
        return not self.thread.is_alive()

    def silent_s(self) -> float:
        """Seconds since the thread last made progress."""
        return time.monotonic() - self._last_sign

    def join(self) -> None:
        """Returns when this rank's part is over. Meanwhile progress of any rank counts as progress of this one."""
        if torch.distributed.get_world_size() == 1:
            self.thread.join()
        else:
            process_group.progress_barrier().wait_for(self._ends_within)

    def abandon(self, patience_s: float) -> None:
        """After a failure: waits until it is done, but not for a rank that makes no progress for `patience_s`, since
        that rank may have ended."""
        while not self._ends_within(0.1):
            if self.silent_s() > patience_s:
                self._abandoned.set()
                self.thread.join(1.0)
                return

    def _ends_within(self, seconds: float) -> bool:
        self.thread.join(seconds)
        return self.done

    def _run(self) -> None:
        thread = get_ident()

        def sign() -> None:
            if get_ident() == thread:
                self._last_sign = time.monotonic()

        progress.listen(sign)
        try:
            _lower_priority()
            self._save()
        except Exception as error:  # raised again by whoever asks for the result
            self.error = error
        finally:
            progress.ignore(sign)
            self.contents = {}
            self.seconds = time.monotonic() - self.began

    def _save(self) -> None:
        paths = [self.folder / path for path in self.contents]
        is_main = process_group.is_main_process()
        try:
            entries = self.write_files()
            if is_main:
                self.commit(entries | self._collect())
            else:
                self._post(entries)
        except Exception:
            _truncate(paths)  # this rank and others need the space, for their logs
            if is_main:
                self._remove()
            else:
                self._post(None)
            raise

    def _remove(self) -> None:
        """Removes an unfinished checkpoint once no rank writes to it any more, since a rank that missed the folder
        would report that."""
        with suppress(RuntimeError):
            self._collect()
        _truncate(path for path in self.folder.rglob("*") if path.is_file())
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_files(self) -> Entries:
        """Writes this rank's files, and lets go of each value that is written."""
        entries = {}
        for path in sorted(self.contents):
            entries[path] = write_file(self.folder / path, self.contents.pop(path))
        return entries

    def _post(self, entries: Entries | None) -> None:
        """Tells rank 0 what this rank wrote; None: it failed."""
        store = process_group.progress_barrier().store
        store.set(f"{self.key}/{torch.distributed.get_rank()}", json.dumps(entries))

    def _collect(self) -> Entries:
        """What the other ranks wrote. Raises RuntimeError when one of them failed, which says itself why."""
        entries: Entries = {}
        while self._missing:
            rank = self._missing.pop()
            store, key = process_group.progress_barrier().store, f"{self.key}/{rank}"
            while not store.check([key]):
                if self._abandoned.wait(POLL_S):
                    raise RuntimeError(f"rank {rank} did not write its part of a checkpoint")
            part = json.loads(store.get(key))
            store.delete_key(key)
            if part is None:
                raise RuntimeError(f"rank {rank} could not write its part of a checkpoint")
            entries |= part
            progress.report()
        return entries


def _lower_priority() -> None:
    """Lets training go first where there are as many ranks as cores. A save that training waits for is no slower by
    that: then no rank computes."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICE)


def _truncate(paths: Iterable[Path]) -> None:
    """Frees the space of unfinished files: one that is still open would keep it although it is removed."""
    for path in paths:
        with suppress(OSError):
            os.truncate(path, 0)


def is_disk_failure(error: BaseException) -> bool:
    """Whether a save failed because of the disk, rather than because another rank has died, for example."""
    return isinstance(error, OSError) or (
        isinstance(error, RuntimeError) and "inline_container" in str(error)
    )


def write_file(path: Path, value: Any) -> dict[str, Any]:
    """Writes a value by torch.save and flushes it to the disk; returns the file's size and sha256, computed from what
    was written, so that the file need not be read again."""
    path.parent.mkdir(exist_ok=True)
    with files.streaming_write(path) as file:
        hashing = _HashingFile(file.write)
        torch.save(value, hashing)  # type: ignore[arg-type]  # it needs no more of a file
    files.sync(path)
    progress.report()
    return {"bytes": hashing.bytes, "sha256": hashing.digest.hexdigest()}


class _HashingFile:
    """A file that knows the size and sha256 of what was written to it."""

    def __init__(self, write: Callable[[Any], int]) -> None:
        self._write, self.digest, self.bytes = write, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        written = self._write(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        """Nothing is buffered."""


def commit(temporary: Path, final: Path, metadata: dict[str, Any], entries: Entries) -> None:
    """Writes meta.json, marks the folder complete and moves it to its name; fsync before each of these.

    Raises OSError when a file that a rank wrote is not there with its size.
    """
    for path, entry in entries.items():
        if (size := (temporary / path).stat().st_size) != entry["bytes"]:
            raise OSError(f"{path} has {size} bytes, not {entry['bytes']}")
    for folder in sorted({(temporary / path).parent for path in entries}):
        files.sync(folder)
        progress.report()
    ordered = {path: entries[path] for path in sorted(entries)}
    files.write_json(temporary / "meta.json", {**metadata, "files": ordered})
    files.write_text(temporary / "COMPLETE", files.sha256(temporary / "meta.json") + "\n")
    if final.exists():
        checkpoint.discard(final)
    os.rename(temporary, final)
    files.sync(final.parent)
    files.write_text(final.parent / "latest", final.name + "\n")
