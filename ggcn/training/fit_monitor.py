"""How well the transport regression fits while a run trains: R^2 on training and on held-out images."""

from collections.abc import Callable
from statistics import fmean

from torch import Tensor

from ggcn.config.schema import Config
from ggcn.data import held_out
from ggcn.distributed import process_group
from ggcn.evaluation.images import read
from ggcn.learning.learner import Learner
from ggcn.learning.r_squared import r_squared
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir

IMAGES = 256
"""images of each set, evenly spaced; with so many, R^2 varies by about 0.01 with the choice of images"""


class FitMonitor:
    """Measures R^2 of a run's averaged energies, always on the same images. All ranks call every method."""

    def __init__(self, config: Config, run: RunDir) -> None:
        """Raises UserError when data.holdout is given and cannot be read, or checkpoint.best_by needs held-out images
        and there are none."""
        self.config, self.run = config, run
        self.decides_best = config.checkpoint.best_by == "r2_heldout"
        held_out.check(config)
        folders = {"r2": next(iter(config.data.folders())), "r2_heldout": held_out.folder(config)}
        self.sets = {name: self._read(folder) for name, folder in folders.items() if folder}
        self.measured: tuple[tuple[int, int], dict[str, float]] = ((-1, -1), {})

    def _read(self, folder: str) -> Tensor:
        config = self.config
        return read(folder, config.model.grids[-1], IMAGES, config.data.crop, config.data).pixels[:]

    def measure(self, learner: Learner, step: int) -> dict[str, float]:
        """{"r2/SIZE": R^2 on training images, "r2_heldout/SIZE": on held-out ones}, for every grid after `step`."""
        state = learner.attempt, step
        if self.measured[0] != state:
            self.measured = state, self._measure(learner)
        return self.measured[1]

    def record_best(
        self, learner: Learner, step: int, when_saved: Callable[[Callable[[], object]], None]
    ) -> None:
        """With checkpoint.best_by=r2_heldout, records the checkpoint of `step` if it is the best so far, once
        `when_saved` calls for that."""
        if not self.decides_best:
            return
        values = [
            value for name, value in self.measure(learner, step).items() if name.startswith("r2_heldout/")
        ]
        how = f"mean R^2 over grids, {len(self.sets['r2_heldout'])} held-out images"
        if process_group.is_main_process():
            root, value = self.run.checkpoints, fmean(values)
            when_saved(lambda: checkpoint.record_best(root, step, value, how, "r2_heldout"))

    def _measure(self, learner: Learner) -> dict[str, float]:
        networks = learner.ema_energies.module, learner.ema_upsamplers.module
        values: dict[str, float] = {}
        for name, images in self.sets.items():
            per_grid = r_squared(self.config, *networks, images).tolist()
            values |= {
                f"{name}/{size}": value for size, value in zip(self.config.model.grids, per_grid, strict=True)
            }
        return values
