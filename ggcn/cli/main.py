"""The console script `ggcn`: one name for all commands."""

import argparse
import difflib
import sys
from importlib import import_module
from typing import NamedTuple, NoReturn

from ggcn import __version__
from ggcn.console import document_commands, run_cli
from ggcn.errors import UserError


class Command(NamedTuple):
    """A subcommand: the module of ggcn.cli whose main() runs it, and its line in `ggcn --help`."""

    module: str
    summary: str


COMMANDS = {
    "launch": Command("launch", "start or resume a run, on this machine or on SLURM"),
    "status": Command("status", "show, follow or cancel runs"),
    "make-shards": Command("make_shards", "build shards from images"),
    "verify-shards": Command("verify_shards", "check shards against their manifest"),
    "sample": Command("sample", "draw images from a trained model; in-paint, denoise, interpolate"),
    "evaluate": Command("evaluate", "measure a trained model: FID, KID, precision, recall, memorization"),
    "report": Command("report", "write a run's report.html"),
    "export": Command("export", "write a trained model as one file"),
    "inspect": Command("inspect_checkpoint", "show and verify what checkpoints hold"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command that `argv`, by default sys.argv[1:], names; returns its exit code.

    Raises UserError for an unknown command.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name.startswith("-"):
        return _own_flags([name, *rest])
    if name not in COMMANDS:
        raise UserError(_unknown(name))
    sys.argv = [f"ggcn {name}", *rest]  # its usage line, and what its messages say to type
    command = import_module(f"ggcn.cli.{COMMANDS[name].module}")
    command.__doc__ = document_commands(command.__doc__ or "")  # what its --help prints
    return command.main() or 0


def parser() -> argparse.ArgumentParser:
    """The flags that stand before a command, and the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    cli = argparse.ArgumentParser(
        prog="ggcn",
        usage="ggcn COMMAND [ARGUMENT ...]",
        description="\n".join(["Energy-based generative ConvNets. Commands:", "", *lines]),
        epilog="ggcn COMMAND --help describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--version", action="version", version=f"ggcn {__version__}")
    cli.add_argument(
        "--completion",
        choices=("bash", "zsh"),
        help='print the completion for a shell; in ~/.bashrc: eval "$(ggcn --completion bash)"',
    )
    return cli


def _own_flags(argv: list[str]) -> int:
    """What the flags before a command ask for; --help and --version end the program."""
    own = parser()
    shell = own.parse_args(argv).completion
    from ggcn.cli import completion

    print(completion.script(shell, own, COMMANDS))
    return 0


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
    advice = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command {name}; {advice}"


def console_script() -> NoReturn:
    """The entry point of the console script and of `python -m ggcn`."""
    run_cli(main)
