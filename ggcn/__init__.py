"""Energy-based generative ConvNets: models, sampling, learning, and runs that resume exactly."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggcn.sampling.sampler import Sampler

__version__ = "0.2.0"


def load(path: "str | PathLike[str]", step: int | None = None, device: str = "cpu") -> "Sampler":
    """The sampler of a run directory (at its newest whole checkpoint, or at `step`) or of an exported file:

    images = ggcn.load("runs/faces64").sample(16)

    PyTorch's flags are set so that float32 is float32 and operators are deterministic, for the whole process; see
    ggcn.precision. Raises ggcn.errors.UserError when `path` is neither, or has no such checkpoint.
    """
    from pathlib import Path

    from ggcn.applications.export import load as load_from  # torch, which `import ggcn` does without

    return load_from(Path(path), step, device)
