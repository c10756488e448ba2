"""Takes credentials out of text before it is shown or stored where others read it."""

import logging
import re

HIDDEN = "***"

URL = re.compile(
    r"""([a-z][a-z0-9+.-]*://)            # scheme
        ([^\s/?\#'"<>]*@)?                # user:password@
        ([^\s?\#'"<>]*)                   # host and path
        ([?\#][^\s'"<>]*?)?               # query: signatures and tokens have many names, so all of it goes
        (?=[).,;:]*(?:[\s'"<>]|$))""",
    re.IGNORECASE | re.VERBOSE,
)
HEADER = re.compile(
    r"((?:authorization|[\w-]*token|[\w-]*api-?key|cookie)\s*:\s*(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+",
    re.IGNORECASE,
)
ASSIGNED = re.compile(
    r"([\w-]*(?:token|secret|passw(?:or)?d|passwd|api[_-]?key|access[_-]?key|credentials?|signature)[\w-]*\s*=\s*"
    r"['\"]?)[^\s'\"&;]+",
    re.IGNORECASE,
)
LOGIN = re.compile(r"((?:^|\s)(?:-u|--user|--proxy-user)[\s=]+['\"]?[^\s'\":]+:)[^\s'\"]+")


def redact(text: str) -> str:
    """The text without passwords and queries in URLs, and without values of headers and variables named as secrets."""
    if "://" in text:
        text = URL.sub(_url, text)
    for pattern in (HEADER, ASSIGNED, LOGIN):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def shard_folder(url: str) -> str:
    """A folder of shards as others may see it: of a `pipe:` command only the program's name remains."""
    if not url.startswith("pipe:"):
        return redact(url)
    program = url.removeprefix("pipe:").split()[:1]
    return f"pipe:{''.join(program)} {HIDDEN}"


class Formatter(logging.Formatter):
    """A log format whose lines, tracebacks included, hold no credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as redacted text."""
        return redact(super().format(record))


def _url(match: re.Match[str]) -> str:
    scheme, login, place, query = match.groups()
    return f"{scheme}{f'{HIDDEN}@' if login else ''}{place}{f'{query[0]}{HIDDEN}' if query else ''}"
