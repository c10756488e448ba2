"""TensorBoard events in the run directory."""

from pathlib import Path

from ggcn.tracking.base import TrackedRun


class TensorBoardTracker:
    """Writes scalars and images to RUN/tensorboard; its own thread does the writing."""

    def __init__(self, purge_step: int) -> None:
        """purge_step: events from this step on, of an attempt before, are hidden."""
        self.purge_step = purge_step

    def start(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(run.folder) / "tensorboard"), purge_step=self.purge_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, outcome: str) -> None:
        self.writer.close()
