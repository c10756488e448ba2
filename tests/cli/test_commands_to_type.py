"""Messages name commands as the user started them."""

import sys

import pytest

from ggcn.console import command_line, document_commands, this_command


def test_a_checkouts_script_names_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster/launch.py", "-m", "local", "run=a b"])
    assert this_command() == "python cluster/launch.py -m local 'run=a b'"
    assert command_line("status") == "python cluster/status.py"
    assert command_line("verify-shards") == "python tools/verify_shards.py"
    assert command_line("inspect") == "python tools/inspect_checkpoint.py"


def test_the_console_script_names_its_subcommands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ggcn launch", "-m", "local", "run=a b"])
    assert this_command() == "ggcn launch -m local 'run=a b'"
    assert command_line("status") == "ggcn status"
    text = "    python tools/inspect_checkpoint.py runs/a\nsee cluster/status.py, or python tools/make_shards.py\n"
    assert document_commands(text) == "    ggcn inspect runs/a\nsee ggcn status, or ggcn make-shards\n"
