"""Removes credentials from text before it is shown or stored where others can read it."""

import logging
import re
import shlex

HIDDEN = "***"

URL = re.compile(
    r"""([a-z][a-z0-9+.-]*://)            # scheme
        ([^\s/?\#'"<>]*@                  # user:password@
        |[^\s/?\#'"<>:]+:(?!\d{1,5}/)[^\s'"<>]*@)?  # a password may contain a slash; a port is not a password
        ([^\s?\#'"<>]*)                   # host and path
        ([?\#][^\s'"<>]*?)?               # query: signatures and tokens have many names, so all of it goes
        (?=[).,;:]*(?:[\s'"<>]|$))""",
    re.IGNORECASE | re.VERBOSE,
)
SECRET = r"""(?![\w-]*(?:error|exception|tokeni[sz]))[\w-]*
    (?:token|secret|passw(?:or)?d|passphrase|(?:api|access|account|auth|private|session)[_-]?key|credentials?|signature)
    [\w-]*"""
"""names of variables, headers, options and keys whose values are redacted"""
HEADER = re.compile(
    r"""((?P<outer>['"])?(?<![\w-])(?:(?:proxy-)?authorization|(?:set-)?cookie)
        (?:\\*['"])?[ \t]*[:=][ \t]*(?:\\*(?P<quote>['"]))?
        (?:(?:bearer|basic|token|digest|negotiate|apikey|aws[\w-]*)\s+)?)
        (?:(?(quote)(?!(?P=quote))|(?(outer)(?!(?P=outer))))[^\n])+""",
    re.IGNORECASE | re.VERBOSE,
)
NAMED = re.compile(
    rf"""((?:(?P<outer>['"])(?={SECRET}\s*[:=]))?
        (?:(?<![\w-])--?(?=\w){SECRET}[ \t]+(?!-)
        |(?<![\w-]){SECRET}(?:\\*['"])?[ \t]*[:=](?!//)[ \t]*)
        (?:\\*(?P<quote>['"]))?)
        (?:(?(quote)(?:\\.|(?!(?P=quote))[^\n])|(?(outer)(?!(?P=outer))[^\n]|[^\s'"&;])))+""",
    re.IGNORECASE | re.VERBOSE,
)
LOGIN = re.compile(
    r"""((?:^|(?<=[\s'"]))(?:-[fgikLsSv]*[uU][\s=]+|-[uU]|(?:--user|--proxy-user)[\s=]+)
        (?P<quote>['"])?[^\s'":]+:)
        (?:(?(quote)(?!(?P=quote))[^\n]|[^\s'"]))+""",
    re.VERBOSE,
)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")


def redact(text: str) -> str:
    """The text without passwords and queries in URLs, and without values of headers and variables named as secrets."""
    if "://" in text:
        text = URL.sub(_url, text)
    for pattern in (HEADER, NAMED, LOGIN):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def shard_folder(url: str) -> str:
    """A folder of shards without credentials: of a `pipe:` command only the program's name remains."""
    if not url.startswith("pipe:"):
        return redact(url)
    program = _program(url.removeprefix("pipe:"))
    return f"pipe:{redact(program)} {HIDDEN}" if program else f"pipe:{HIDDEN}"


def _program(command: str) -> str:
    """The name of the first program that a shell command runs; empty where it cannot be parsed."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    try:
        for token in lexer:
            skipped = ASSIGNMENT.match(token) or token == "env" or token.startswith("-")
            if not skipped and re.search(r"\w", token):
                return token
    except ValueError:  # a quote without an end
        pass
    return ""


class Formatter(logging.Formatter):
    """A log format whose lines, tracebacks included, hold no credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as redacted text."""
        return redact(super().format(record))


def _url(match: re.Match[str]) -> str:
    scheme, login, location, query = match.groups()
    return f"{scheme}{f'{HIDDEN}@' if login else ''}{location}{f'{query[0]}{HIDDEN}' if query else ''}"
