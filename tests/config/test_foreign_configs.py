"""A config.yaml from somebody else: nothing of the reader's environment is put into it, and it stays small."""

from pathlib import Path

import pytest
from helpers import TINY

from ggcn.config.compose import compose, parse
from ggcn.config.interpolation import resolved
from ggcn.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "cluster: {nodes: [['${oc.env:SECRET_X}']]}",
        "cluster: {nodes: [{a: '${oc.env:SECRET_X}'}]}",
        "cluster: {nodes: {'${oc.env:SECRET_X}': 1}}",
    ],
)
def test_interpolations_are_found_wherever_they_hide(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_X", "s3cr3t")
    with pytest.raises(UserError) as caught:
        parse(text, Path("config.yaml"))
    assert "s3cr3t" not in str(caught.value)


def test_aliases_that_grow_without_bound_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="holds a YAML alias"):
        parse("\n".join(rows), Path("config.yaml"))


@pytest.mark.parametrize("word", [r"model.name=a\${lanes}", "model.name=???", "cluster.partition=???"])
def test_texts_that_no_file_gives_back_are_refused(word: str) -> None:
    with pytest.raises(UserError, match="give another text"):
        compose([*TINY, word])


def test_folders_of_a_mixture_that_become_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "/d")
    monkeypatch.setenv("B", "/d")
    with pytest.raises(UserError, match="names one folder twice"):
        resolved(compose([*TINY, "+data.mixture={$A/x: 1, $B/x: 2}"]), strict=True)


def test_true_is_no_number_of_nodes() -> None:
    with pytest.raises(UserError, match=r"cluster\.nodes=True must be a number of nodes"):
        compose([*TINY, "cluster.nodes=true"])
