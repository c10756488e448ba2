"""The error files in logs/, in which a rank tells the launcher or the batch script why it failed."""

from contextlib import suppress
from pathlib import Path

from ggcn import files, redact
from ggcn.run import event_log
from ggcn.run.directory import RunDir

_SIGNATURE = "attempt "
"""begins the last line of an error file; followed by event_log.attempt()"""


def write(path: Path, error: Exception) -> None:
    """Writes the error's sentence and this attempt's id to `path`."""
    with suppress(OSError):  # the disk's failure may be the very error
        files.write_text(path, f"{redact.redact(str(error))}\n{_SIGNATURE}{event_log.attempt()}\n")


def read(path: Path) -> str | None:
    """The sentence that a rank of this attempt wrote to `path`, or None."""
    try:
        text = files.read_text(path)
    except OSError:
        return None
    sentence, signature, attempt = text.rstrip("\n").rpartition(f"\n{_SIGNATURE}")
    return sentence.strip() or None if signature and attempt == str(event_log.attempt()) else None


def first(run: RunDir, kind: str) -> str | None:
    """The first sentence of the ranks of this attempt; `kind`: "error" or "transient", as in RunDir."""
    sentences = (read(path) for path in sorted(run.logs.glob(f"*.{kind}")))
    return next((sentence for sentence in sentences if sentence), None)
