"""Where the images are that a run is measured on and never trained on."""

from pathlib import Path

from ggcn.config.schema import Config
from ggcn.data import manifest
from ggcn.errors import UserError


def folder(config: Config) -> str:
    """The folder of shards that are never trained on, data.holdout or data.shards/holdout; "" where there is none."""
    default = Path(config.data.shards) / "holdout"
    exists = config.data.shards and (default / manifest.NAME).is_file()
    return config.data.holdout or (str(default) if exists else "")


def check(config: Config) -> None:
    """Raises UserError when checkpoint.best_by needs held-out images and there are none."""
    if config.checkpoint.best_by == "r2_heldout" and not folder(config):
        missing = f"{config.data.shards}/holdout" if config.data.shards else "data.holdout"
        raise UserError(
            f"checkpoint.best_by=r2_heldout needs held-out images, and there is no {missing}; set data.holdout=SHARDS "
            "or checkpoint.best_by=fid"
        )
