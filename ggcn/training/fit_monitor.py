"""How well the transport regression fits while a run trains: R^2 on training and on held-out images."""

from pathlib import Path

from torch import Tensor

from ggcn.config.schema import Config
from ggcn.data import manifest
from ggcn.evaluation.images import read
from ggcn.learning.learner import Learner
from ggcn.learning.r_squared import r_squared

IMAGES = 256
"""images of each set, evenly spaced; with so many, R^2 varies by about 0.01 with the choice of images"""


class FitMonitor:
    """Measures R^2 of a run's averaged energies, always on the same images. All ranks call every method."""

    def __init__(self, config: Config) -> None:
        """Raises UserError when data.holdout is given and cannot be read."""
        self.config = config
        folders = {"r2": next(iter(config.data.folders())), "r2_heldout": held_out(config)}
        self.sets = {name: self._read(folder) for name, folder in folders.items() if folder}

    def _read(self, folder: str) -> Tensor:
        config = self.config
        return read(folder, config.model.grids[-1], IMAGES, config.data.crop, config.data).pixels[:]

    def measure(self, learner: Learner) -> dict[str, float]:
        """{"r2/SIZE": R^2 on training images, "r2_heldout/SIZE": on held-out ones}, for every grid."""
        networks = learner.ema_energies.module, learner.ema_upsamplers.module
        values: dict[str, float] = {}
        for name, images in self.sets.items():
            per_grid = r_squared(self.config, *networks, images).tolist()
            values |= {
                f"{name}/{size}": value for size, value in zip(self.config.model.grids, per_grid, strict=True)
            }
        return values


def held_out(config: Config) -> str:
    """The folder of shards that are never trained on, data.holdout or data.shards/holdout; "" where there is none."""
    default = Path(config.data.shards) / "holdout"
    exists = config.data.shards and (default / manifest.NAME).is_file()
    return config.data.holdout or (str(default) if exists else "")
