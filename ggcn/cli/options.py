"""Command-line options that several commands have in common."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch

from ggcn.config.data import DataConfig
from ggcn.errors import UserError
from ggcn.precision import set_numeric_flags
from ggcn.sampling.sampler import Sampler
from ggcn.sampling.settings import MODES

PIPE_HELP = (
    "allow SHARDS to be pipe:COMMAND, which runs in a shell; what a run's own config says of it is ignored"
)


class RenamedFlag(argparse.Action):
    """A flag's former name: answers with the new one, its `const`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{option_string} is {self.const} now")


def add_renamed_flags(parser: argparse.ArgumentParser, names: dict[str, str]) -> None:
    """Former names of flags and their present ones; --help does not list them."""
    for old, new in names.items():
        parser.add_argument(old, action=RenamedFlag, const=new, nargs="?", help=argparse.SUPPRESS)


def add_chain_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a sampler's chains, each a number or one per grid."""
    group = parser.add_argument_group(
        "chains", "one number, or one per grid as in 4,8; default: the model's own"
    )
    group.add_argument(
        "--mode",
        choices=MODES,
        help="chain, the default; amortized: up-samplers that learned the chains, then a chain of one step, or "
        "of --steps, which may be 0",
    )
    flags = {
        "steps": ("N", "Langevin steps; transport models keep the time, other models the step size"),
        "time": ("T", "steps * step size; for transport models in units of the flow's own time"),
        "temperature": ("T", "of the chains; 0: gradient descent"),
        "noise": ("S", "standard deviation of noise added to chain starts, pixels in [-1, 1]; 0"),
    }
    for name, (metavar, text) in flags.items():
        group.add_argument(f"--{name}", type=_numbers, metavar=metavar, help=text)


def _numbers(text: str) -> list[float]:
    """Raises ValueError, which argparse reports."""
    return [float(part) for part in text.split(",")]


_numbers.__name__ = "list of numbers"  # argparse's word for what it could not read


def with_chain_flags(sampler: Sampler, args: argparse.Namespace) -> Sampler:
    """The sampler with the chains that the flags ask for. Raises UserError for numbers that do not fit."""
    try:
        return sampler.with_settings(args.steps, args.time, args.temperature, args.noise, args.mode)
    except UserError as error:
        raise UserError(f"--{error}") from None


def device(name: str | None) -> torch.device:
    """The device of that name, by default a GPU where there is one. Sets this process's numeric flags.

    Raises UserError when the device cannot be used.
    """
    set_numeric_flags()
    try:
        result = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=result).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name} cannot be used ({reason})") from None
    return result


@contextmanager
def data_config(allow_pipe: bool) -> Iterator[DataConfig]:
    """How shards are read: by commands in `pipe:` only if `allow_pipe`; their output is kept in a temporary folder."""
    if not allow_pipe:
        yield DataConfig()
        return
    with TemporaryDirectory(prefix="ggcn-") as folder:
        yield DataConfig(allow_pipe=True, cache_dir=folder)
