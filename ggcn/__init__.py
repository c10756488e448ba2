"""Energy-based generative ConvNets: models, sampling, learning, and runs that resume exactly."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggcn.sampling.sampler import Sampler

__version__ = "0.2.0"


def load(path: "str | PathLike[str]", step: int | None = None, device: str = "cpu") -> "Sampler":
    """The sampler of a run directory (at its newest valid checkpoint, or at `step`) or of an exported file:

    images = ggcn.load("runs/faces64").sample(16)

    For the whole process PyTorch's flags are set to exact float32 and deterministic operators; see ggcn.precision.
    Raises ggcn.errors.UserError when `path` is neither, or has no such checkpoint.
    """
    from pathlib import Path

    from ggcn.applications.export import load as load_from  # imports torch, which `import ggcn` must not

    return load_from(Path(path), step, device)
