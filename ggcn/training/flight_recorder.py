"""The last collectives of a rank that hangs, in RUN/profile.

torch records the last 2,000 collectives (TORCH_FR_BUFFER_SIZE) of NCCL and of gloo: what each was, on which sizes,
whether it was started and completed. When the watchdog of a rank finds that it hangs, a thread writes them next to the
stacks that the watchdog writes, before it ends the process; comparing the ranks' files shows which of them did not take
part in what.
"""

import json
import logging
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch._C import _distributed_c10d as c10d

from ggcn import files
from ggcn.run.watchdog import Watchdog

log = logging.getLogger(__name__)


def dump(path: Path) -> None:
    """Writes the last collectives as JSON, newest last. Raises OSError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {name: json.loads(getattr(c10d, function)()) for name, function in _functions().items()}
    files.write_json(path, text)


def _functions() -> dict[str, str]:
    """{backend: function that returns its records}; a build without NCCL has the first alone."""
    functions = {"collectives": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}
    return {name: function for name, function in functions.items() if hasattr(c10d, function)}


class HangDump:
    """A thread that writes the collectives of this rank once its watchdog has found that it hangs.

    It needs the GIL, which a rank that waits for a GPU or for other ranks does not hold.
    """

    def __init__(self, path: Path, watchdog: Watchdog) -> None:
        self.path, self.watchdog, self.ended = path, watchdog, Event()
        if watchdog.hang_s:
            Thread(target=self._watch, daemon=True, name="flight recorder").start()

    def _watch(self) -> None:
        written = 0.0
        while not self.ended.wait(self.watchdog.poll_s):
            deadline = self.watchdog.deadline
            if deadline != written and time.monotonic() >= deadline:
                written = deadline  # once per hang: a step may only have taken long
                self._write()

    def _write(self) -> None:
        try:
            dump(self.path)
            log.error("this rank hangs; its last collectives are in %s", self.path)
        except Exception:  # a rank that hangs may lack a disk too
            log.exception("the last collectives were not written")

    def close(self) -> None:
        """Ends the watch."""
        self.ended.set()


def newest(path: Path) -> dict[str, Any] | None:
    """The newest collective in a file that `dump` wrote, None where it holds none."""
    entries = [
        entry for backend in json.loads(files.read_text(path)).values() for entry in backend["entries"]
    ]
    return max(entries, key=lambda entry: entry["time_created_ns"], default=None)
