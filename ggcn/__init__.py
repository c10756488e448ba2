"""Energy-based generative ConvNets: models, sampling, learning, and runs that resume exactly.

The functions here, `ggcn.load`'s `Sampler`, ggcn.testing and the commands are the interface that others may rely on.
"""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggcn.config.schema import Config
    from ggcn.launch.in_process import TrainedRun
    from ggcn.sampling.sampler import Sampler

__all__ = ["compose", "load", "train"]
__version__ = "0.2.0"


def compose(overrides: Sequence[str] = ()) -> "Config":
    """The config of a run: configs/train.yaml with `overrides`, as on the command line of `ggcn launch`.

    config = ggcn.compose(["experiment=quickstart", "run=mine", "train.steps=200"])

    A Config is a tree of dataclasses (config.train.steps); every key is in docs/configuration.md. Raises
    ggcn.errors.UserError, in one sentence, for unknown keys and values that are ill-typed or do not go together.
    """
    from ggcn.config.compose import compose as compose_config

    return compose_config(list(overrides))


def train(config: "Config", force: bool = False) -> "TrainedRun":
    """Trains the run that `config` describes, or resumes it, as one rank in this process: no cluster, no launcher.

    run = ggcn.train(config)         # run.path, run.step, run.finished
    images = ggcn.load(run).sample(16)

    The run directory, its checkpoints and its numbers are those of `ggcn launch -m debug`, and either goes on with what
    the other began. Ctrl-C, or a notebook's stop button, completes the step, saves it and raises KeyboardInterrupt; the
    same call then goes on. `force`: resume although the config changed.

    Raises ggcn.errors.UserError for what keeps the run from starting, such as missing shards or a changed config.
    """
    from ggcn.launch.in_process import train as train_here

    return train_here(config, force)


def load(path: "str | PathLike[str]", step: int | None = None, device: str = "cpu") -> "Sampler":
    """The sampler of a run directory (at its newest valid checkpoint, or at `step`) or of an exported file:

    images = ggcn.load("runs/faces64").sample(16)

    For the whole process PyTorch's flags are set to exact float32 and deterministic operators; see ggcn.precision.
    Raises ggcn.errors.UserError when `path` is neither, or has no such checkpoint.
    """
    from os import fspath

    from ggcn.applications.export import load as load_from  # imports torch, which `import ggcn` must not

    return load_from(fspath(path), step, device)
