"""Features kept on disk, so that a data set goes through a feature network once."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ggcn import files

log = logging.getLogger(__name__)

PART = 4096
"""pictures per file: what a killed process loses at most"""


def default_folder() -> Path | None:
    """Where features are kept unless the user says otherwise; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):  # a relative one does not count, says the standard
        return Path(home) / "ggcn" / "features"
    try:
        return Path.home() / ".cache" / "ggcn" / "features"
    except (RuntimeError, KeyError):
        return None


@dataclass
class FeatureCache:
    """A folder of feature files. Several processes may use it at once, and it may be removed at any time.

    Nothing fails for it: where it cannot be read or written, features are made and, after a warning, not kept.
    """

    folder: Path | None
    option: str = "--cache FOLDER"
    """how the user names another one"""

    def features(self, name: str, pixels: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(pixels)`, or what it gave before under this name; made and kept PART pictures at a time.

        `name` must stand for all that the features depend on: the pictures and the network.
        """
        parts = [
            self._part(f"{name}-{number * PART}.safetensors", part, make)
            for number, part in enumerate(pixels.split(PART))
        ]
        return torch.cat(parts)

    def _part(self, name: str, pixels: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        kept = _read(self.folder / name) if self.folder else None
        if kept is not None and len(kept) == len(pixels):
            return kept
        made = make(pixels)
        if self.folder is None:
            self._warn("there is no home directory")
        else:
            self._keep(self.folder / name, made)
        return made

    def _keep(self, path: Path, made: Tensor) -> None:
        try:
            with files.atomic_write(path) as temporary:
                save_file({"features": made.contiguous()}, temporary)
        except (OSError, SafetensorError) as error:  # the latter for a full disk
            self._warn(f"{path} cannot be written ({error})")

    def _warn(self, reason: str) -> None:
        """Says once why features are not kept."""
        if self.folder not in _warned:
            _warned.add(self.folder)
            log.warning(
                "the features of pictures are not kept for another time, since %s; name a folder for them by %s",
                reason,
                self.option,
            )


_warned: set[Path | None] = set()


def _read(path: Path) -> Tensor | None:
    """The features in a file; None where there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features")
    except (OSError, SafetensorError):
        return None
