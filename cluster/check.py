"""What can be known of the data without torch, on a login node, in a moment."""

from ggcn.config import Config
from ggcn.data import manifest
from ggcn.data.order import Order
from ggcn.errors import UserError


def data(config: Config) -> None:
    """Checks that local shards are there, whole by size, enough for the lanes and of a size that fits.

    Remote shards are checked when the ranks start. Raises UserError with the first fault.
    """
    config.data.check()
    for folder in config.data.folders():
        path = folder.removeprefix("file://")
        if "://" in path or path.startswith("pipe:"):
            continue
        found = manifest.load(path)
        manifest.check_files(found)
        Order(found.counts, config.seed, config.lanes, config.data.block)
        _check_side(found.size, config)


def _check_side(stored: int, config: Config) -> None:
    size = config.model.grids[-1]
    side = config.data.crop or stored
    if side > stored or side < size or side % size:
        raise UserError(
            f"images of {side} out of {stored} pixels a side cannot be averaged down to {size}; "
            f"change model.grids or data.crop, or build shards with --size {size}"
        )
