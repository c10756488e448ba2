"""The templates of the pages, in templates/: they escape all text, and leave credentials in it out."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ggcn.redact import redact

Section = tuple[str, Markup]
"""a heading, and what stands below it"""


def element(name: str, *args: Any) -> Markup:
    """What a macro of elements.html makes of its arguments."""
    return getattr(_environment().get_template("elements.html").module, name)(*args)


def document(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A self-contained page; sections without content are left out.

    The browser runs and fetches nothing but what the page itself holds: the policy names the hashes of its script and
    its style sheet.
    """
    script, style = _source("report.js"), _source("style.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            sections=[section for section in sections if section[1]],
            policy=Markup(policy),  # noqa: S704 - the package's own text
            script=Markup(script),  # noqa: S704 - the package's own text
            style=Markup(style),  # noqa: S704 - the package's own text
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ggcn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: redact(value) if type(value) is str else value,
    )


def _source(name: str) -> str:
    """A file that goes into the page as it is."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
