"""A cache of features on disk, so that a data set passes through a feature network only once."""

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

FILE_IMAGES = 4096
"""images per file, and lost at most when the process is killed"""


def default_folder() -> Path | None:
    """The default folder of cached features; None for a user without a home directory."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):  # the standard ignores relative ones
        return Path(home) / "ggcn" / "features"
    try:
        return Path.home() / ".cache" / "ggcn" / "features"
    except (RuntimeError, KeyError):
        return None


@dataclass
class FeatureCache:
    """A folder of feature files. Several processes may use it at once, and it may be removed at any time.

    Errors of the cache are never fatal: where it cannot be read or written, features are computed, with a warning.
    """

    folder: Path | None
    option: str = "--cache FOLDER"
    """the option by which the user chooses another folder"""

    def features(self, name: str, pixels: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(pixels)`, or its former result of this name; computed and cached FILE_IMAGES images at a time.

        `name` must identify everything that the features depend on: the images and the network.
        """
        parts = [
            self._cached_part(f"{name}-{number * FILE_IMAGES}.safetensors", part, compute)
            for number, part in enumerate(pixels.split(FILE_IMAGES))
        ]
        return torch.cat(parts)

    def _cached_part(self, name: str, pixels: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        cached = _read(self.folder / name) if self.folder else None
        if cached is not None and len(cached) == len(pixels):
            return cached
        features = compute(pixels)
        if self.folder is None:
            self._warn("there is no home directory")
        else:
            self._write(self.folder / name, features)
        return features

    def _write(self, path: Path, features: Tensor) -> None:
        try:
            with files.atomic_write(path) as temporary:
                save_file({"features": features.contiguous()}, temporary)
        except (OSError, SafetensorError) as error:  # SafetensorError for a full disk
            self._warn(f"{path} cannot be written ({error})")

    def _warn(self, reason: str) -> None:
        """Logs once per folder why features are not cached."""
        if self.folder not in _warned:
            _warned.add(self.folder)
            log.warning(
                "features are not cached, since %s; name a folder for them by %s",
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
