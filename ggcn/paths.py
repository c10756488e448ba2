"""Home directories and environment variables in paths."""

import os
import re
from pathlib import Path

from ggcn.errors import UserError

VARIABLE = re.compile(r"(\\?)\$(?:(\w+)|\{(\w+)\})")


def is_local(folder: str) -> bool:
    """Whether a folder of shards is a path on this machine, written plainly or as file://."""
    return folder.startswith("file://") or not ("://" in folder or folder.startswith("pipe:"))


def user_path(text: str) -> Path:
    """A path from the command line, with an unquoted shell's expansion of `~` and `~USER`."""
    return Path(os.path.expanduser(text))


def expand_home(text: str) -> str:
    """A path with a leading `~` or `~USER` replaced. Raises UserError when there is no such user."""
    scheme = "file://" if text.startswith("file://") else ""
    path = os.path.expanduser(text.removeprefix(scheme))
    if path.startswith("~"):
        user = path[1:].partition("/")[0]
        raise UserError(
            f"{text} names the home of the user {user}, who does not exist here; write ./~ for a folder ~"
        )
    return scheme + path


def expand_variables(text: str) -> str:
    r"""The path with every $NAME and ${NAME} of this process's environment replaced; \$NAME stands for itself.

    Variables that are not set stay as they are; `undefined` names them.
    """
    return VARIABLE.sub(_value, text)


def undefined(text: str) -> list[str]:
    """The environment variables in a path that are not set in this process."""
    names = [match[2] or match[3] for match in VARIABLE.finditer(text) if not match[1]]
    return [name for name in names if name not in os.environ]


def _value(match: re.Match[str]) -> str:
    escaped, name = match[1], match[2] or match[3]
    return match[0][1:] if escaped else os.environ.get(name, match[0])
