"""Escapes text for HTML."""

import html

from ggcn.redact import redact


def escape(text: object) -> str:
    """The text escaped for HTML, without credentials, which an older version may have written to a run's files."""
    return html.escape(redact(str(text)))
