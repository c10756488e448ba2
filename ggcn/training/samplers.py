"""Samplers of a run while it trains, with the chain times of its checkpoints."""

from typing import Any

import torch
from torch import Tensor

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.learning.learner import Learner
from ggcn.sampling import calibration
from ggcn.sampling.sampler import Sampler
from ggcn.training.linear_maps import training_images


class Samplers:
    """Makes samplers of a run's averaged weights, as tools/sample.py would of their checkpoint. All ranks call every
    method."""

    def __init__(self, config: Config) -> None:
        """Raises UserError when training images that are needed cannot be read."""
        self.config = config
        self.images: Tensor | None = None
        if calibration.is_calibrated(config):
            self.images = process_group.broadcast_from_main(self._read())
        self.calibrated: tuple[tuple[int, int], dict[str, Any]] = ((-1, -1), {})

    def _read(self) -> Tensor | None:
        """The images to calibrate on; None on ranks other than 0, which leave the file system alone."""
        if not process_group.is_main_process():
            return None
        images = training_images(self.config.data, self.config.model.grids[-1], calibration.IMAGES)
        return torch.cat(list(images))

    def metadata(self, learner: Learner, step: int) -> dict[str, Any]:
        """The entries in meta.json that the sampler of this step's weights needs."""
        if self.images is None:
            return {}
        state = learner.attempt, step
        if self.calibrated[0] != state:
            self.calibrated = state, calibration.calibrate(self._sampler(learner, {}), self.images)
        return {"sampling": self.calibrated[1]}

    def sampler(self, learner: Learner, step: int) -> Sampler:
        """A sampler of the averaged weights as they are after `step`."""
        return self._sampler(learner, self.metadata(learner, step))

    def _sampler(self, learner: Learner, metadata: dict[str, Any]) -> Sampler:
        networks = learner.ema_energies.module, learner.ema_upsamplers.module
        return Sampler(self.config, *networks, metadata=metadata)
