"""Text of others inside HTML."""

import html

from ggcn.redact import redact


def escape(text: object) -> str:
    """The text as HTML shows it, without credentials: an older version may have written some into a run's files."""
    return html.escape(redact(str(text)))
