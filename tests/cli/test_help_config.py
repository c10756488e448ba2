"""The configuration explains itself, in the terminal and in docs/configuration.md."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, call

from ggcn.cli import help_config
from ggcn.config.keys import keys
from ggcn.config.renamed import RENAMED
from ggcn.errors import UserError


def test_every_key_is_shown_with_its_default_and_its_meaning() -> None:
    text = " ".join(help_config.text().split())
    for key in keys().values():
        assert f"{key.name} = {help_config.shown(key.default)}" in text
        assert key.doc in text


def test_a_terminal_of_100_columns_is_enough() -> None:
    assert max(map(len, help_config.text().splitlines())) <= 100


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("model.replay_buffer", ["chains", "reinit_prob", "cold_start_factor"]),
        ("train.steps", ["train.steps = 1000    whole number in [1, inf]"]),
        ("engine.precision", ["one of bf16, fp32, bf16_parameters"]),
        ("model.grids", ["[8, 32]", "model=ggcn [16, 32] (chosen by default)"]),
        ("cluster.ranks", ["cluster.ranks = null    whole number in [1, inf], or null"]),
        ("train.batch", ["experiment=quickstart 64"]),
    ],
)
def test_a_key_or_a_group_is_shown_alone(prefix: str, expected: list[str]) -> None:
    text = help_config.text(prefix)
    assert all(part in text for part in expected)
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    assert shown == [key for key in keys() if f"{key}.".startswith(f"{prefix}.")]


def test_an_unknown_name_is_one_sentence_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key model.chian; did you mean model.chain\?"):
        help_config.text("model.chian")
    with pytest.raises(UserError, match="unknown key model.bank; it is model.replay_buffer now"):
        help_config.text("model.bank")


def test_the_launcher_shows_it_also_with_a_folder_of_presets(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/mysite.yaml").write_text("mem: 64G\n", encoding="utf-8")
    done = call("cluster/launch.py", "--config-dir", tmp_path, "--help-config", "cluster.mem")
    assert done.returncode == 0, done.stderr
    assert "cluster=mysite 64G" in done.stdout
    assert call("cluster/launch.py", "--help-config", "cluster.men").returncode == 2


def test_neither_torch_nor_hydra_is_imported() -> None:
    code = (
        "import sys; from ggcn.cli import launch; sys.argv = ['launch', '--help-config']; launch.main(); "
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=ROOT)
    assert done.returncode == 0


def test_docs_configuration_is_current() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == f"{help_config.markdown()}\n", (
        "write it again: python -m ggcn.cli.help_config --markdown > docs/configuration.md"
    )


def test_the_page_lists_renamed_keys() -> None:
    page = help_config.markdown()
    assert all(f"| `{old}` | `{new}` |" in page for old, new in RENAMED.items())
