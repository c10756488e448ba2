"""Features kept on disk, so that a data set goes through a feature network once."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ggcn import files

PART = 4096
"""pictures per file: what a killed process loses at most"""


def default() -> Path:
    """Where features are kept unless the user says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ggcn" / "features"


@dataclass(frozen=True)
class Cache:
    """A folder of feature files. Several processes may use it at once, and it may be removed at any time."""

    folder: Path

    def features(self, name: str, pixels: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(pixels)`, or what it gave before under this name; made and kept PART pictures at a time.

        `name` must stand for all that the features depend on: the pictures and the network.
        """
        parts = [
            self._part(self.folder / f"{name}-{number * PART}.safetensors", part, make)
            for number, part in enumerate(pixels.split(PART))
        ]
        return torch.cat(parts)

    def _part(self, path: Path, pixels: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        kept = _read(path)
        if kept is not None and len(kept) == len(pixels):
            return kept
        made = make(pixels)
        with files.whole(path) as temporary:
            save_file({"features": made.contiguous()}, temporary)
        return made


def _read(path: Path) -> Tensor | None:
    """The features in a file; None where there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features")
    except (FileNotFoundError, SafetensorError):
        return None
