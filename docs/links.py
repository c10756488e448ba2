"""A hook of mkdocs: links of a page that leave docs/ lead to files that are no part of the site."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's text with the paths of such files in place of links to them."""
    return OUTSIDE.sub(r"`\1`", markdown)
