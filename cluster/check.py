"""What can be known of the data without torch, on a login node, in a moment."""

from ggcn.config import Config
from ggcn.data import manifest
from ggcn.data.order import Order
from ggcn.data.view import view


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
        view(folder, found, config.model.grids[-1], config.data.crop)
