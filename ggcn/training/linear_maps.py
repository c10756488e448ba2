"""The fit of the up-samplers' linear maps, with which a new run starts."""

from collections.abc import Collection, Iterator

from torch import Tensor

from ggcn.config.data import DataConfig
from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.evaluation.images import MIN_IMAGES, batches
from ggcn.learning.learner import Learner
from ggcn.models import fitted


def fit_linear_maps(config: Config, learner: Learner, kept: Collection[str] = ()) -> None:
    """Fits the linear maps of the learner's up-samplers to training images, on rank 0 for all ranks. `kept`: names of
    buffers that stay as they are."""
    model, data = config.model, config.data
    upsamplers = learner.ema_upsamplers.module  # float32, whatever the engine's precision
    before = {name: value.clone() for name, value in upsamplers.named_buffers() if name in kept}
    if len(before) == len(list(upsamplers.buffers())):
        return
    if process_group.is_main_process():
        images = training_images(data, model.grids[-1], model.upsampler.fit_images)
        fitted.fit(upsamplers, images, model.grids, mirrored=data.flip)
    maps = {name: value.cpu() for name, value in (dict(upsamplers.named_buffers()) | before).items()}
    learner.load_linear_maps(process_group.broadcast_from_main(maps))


def training_images(config: DataConfig, size: int, count: int) -> Iterator[Tensor]:
    """About `count` training images, uint8 [n, c, size, size] a few at a time, from each folder of a mixture by its
    weight."""
    weights = config.folders()
    for folder, weight in weights.items():
        share = max(MIN_IMAGES, round(count * weight / sum(weights.values())))
        yield from batches(folder, size, share, config.crop, config)
