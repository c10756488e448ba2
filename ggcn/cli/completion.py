"""Completion for shells: a script that shtab writes once, so that a TAB starts no Python."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn, get_args

from ggcn.errors import UserError

SHELLS = ("bash", "zsh")
KEYS = {"bash": "_ggcn_keys", "zsh": "_ggcn_keys"}
BASH = """
_ggcn_keys() {{ compgen -W {keys} -- "$1"; }}
_ggcn() {{
  local key= cur="${{COMP_WORDS[COMP_CWORD]}}"
  if [[ $cur == "=" ]]; then key="${{COMP_WORDS[COMP_CWORD-1]}}"; cur=
  elif [[ ${{COMP_WORDS[COMP_CWORD-1]}} == "=" ]]; then key="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  case "$key" in
{cases}
  ?*) COMPREPLY=($(compgen -f -- "$cur")); return ;;
  esac
  _shtab_ggcn "$@"
  if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace; fi
}}
complete -o filenames -F _ggcn ggcn
"""
ZSH = """
_ggcn_keys() {{ compadd -S '' -- {keys}; }}
"""


def script(shell: str, root: argparse.ArgumentParser, commands: Mapping[str, tuple[str, str]]) -> str:
    """The completion of `ggcn` for a shell, as text for `eval`. root: the parser of the flags before a command;
    commands: {name: (module in ggcn.cli, summary)}. Raises UserError where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab; install it with `pip install 'ggcn[terminal]'`") from None
    subparsers = root.add_subparsers(dest="command")
    for name, (module, summary) in commands.items():
        built = parser_of(name, module)
        complete = subparsers.add_parser(name, parents=[built], add_help=False, help=summary)
        for action in complete._actions:
            _add_completion(action, shtab.FILE)
    preamble = ZSH.format(keys=" ".join(map(shlex.quote, _keys()))) if shell == "zsh" else ""
    text = shtab.complete(root, shell=shell, preamble=preamble)
    return text + (_bash() if shell == "bash" else "")


def parser_of(name: str, module: str) -> argparse.ArgumentParser:
    """The parser that a command builds, which its main() keeps to itself."""
    with _captured() as parsers:
        before, sys.argv = sys.argv, [f"ggcn {name}"]
        try:
            import_module(f"ggcn.cli.{module}").main()
        except _Parsing:
            return parsers[-1]
        finally:
            sys.argv = before
    raise AssertionError(f"ggcn {name} parses no arguments")


class _Parsing(Exception):
    """A command has built its parser and begins to parse."""


@contextmanager
def _captured() -> Iterator[list[argparse.ArgumentParser]]:
    """The parsers that begin to parse inside of the with statement, which raises _Parsing there."""
    parsers: list[argparse.ArgumentParser] = []
    names = ("parse_known_args", "parse_known_intermixed_args")
    original = {name: getattr(argparse.ArgumentParser, name) for name in names}

    def capture(self: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        parsers.append(self)
        raise _Parsing

    try:
        for name in names:
            setattr(argparse.ArgumentParser, name, capture)
        yield parsers
    finally:
        for name, function in original.items():
            setattr(argparse.ArgumentParser, name, function)


def _add_completion(action: Any, files: Any) -> None:
    """Lets an argument complete file names, or keys of the config where it is an override."""
    if action.metavar == "KEY=VALUE":
        action.complete = KEYS
    elif action.nargs != 0 and not action.choices:
        action.complete = files


def _keys() -> list[str]:
    """What an override begins with."""
    from ggcn.config.folders import groups
    from ggcn.config.keys import key_types

    return [f"{key}=" for key in (*groups(), *key_types())]


def _bash() -> str:
    """What shtab's script for bash lacks: keys of overrides, and their values after the equals sign."""
    cases = [
        f'  {re.escape(key)}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(values))} -- "$cur")); return ;;'
        for key, values in _values().items()
    ]
    return BASH.format(keys=shlex.quote(" ".join(_keys())), cases="\n".join(cases))


def _values() -> dict[str, list[str]]:
    """{key or group: its values} where they are few."""
    from ggcn.config.fields import Choices
    from ggcn.config.folders import groups, options
    from ggcn.config.keys import keys

    values = {group: sorted(options(group)) for group in groups()}
    for name, key in keys().items():
        if isinstance(key.allowed, Choices):
            values[name] = [str(each) for each in get_args(key.allowed) or key.allowed.values]
        elif key.type is bool:
            values[name] = ["true", "false"]
    return values
