"""No text file of the project depends on the locale."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

SOURCES = sorted(path for folder in ("ggcn", "cluster", "tools") for path in (ROOT / folder).rglob("*.py"))


def silent(path: Path) -> list[int]:
    """Lines that open a text file, or read one, without its encoding."""
    calls = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))
    return [
        call.lineno for call in calls if opens_text(call) and "encoding" not in {k.arg for k in call.keywords}
    ]


def opens_text(call: ast.Call) -> bool:
    """Whether a call is path.open(MODE) or open(PATH, MODE) for text, path.read_text() or path.write_text(TEXT)."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and is_text(call.args[1:])
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) in ("files", "os", "tarfile"):
        return False
    name = call.func.attr
    pure = not call.args or (isinstance(call.args[0], ast.Constant) and len(str(call.args[0].value)) < 4)
    return name in ("read_text", "write_text") or (name == "open" and pure and is_text(call.args))


def is_text(modes: list[ast.expr]) -> bool:
    return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf8(path: Path) -> None:
    assert silent(path) == []
