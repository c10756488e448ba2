"""The comparison at equal compute, with few seconds and small pictures."""

import json
from pathlib import Path

import pytest
from helpers import call

from ggcn.errors import UserError
from tools import compare as tool

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite_pytorch")


def compare(*args: object) -> tuple[int, str]:
    ended = call("tools/compare.py", *args)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_method_that_is_none_is_a_mistake(faces: Path, tmp_path: Path) -> None:
    code, output = compare(faces, "--out", tmp_path / "out", "--methods", "ggcn,gnac")
    assert code != 0
    assert "there is no method gnac; choose from ggcn, ggcn_contrastive, coopnets" in output


def test_results_of_another_comparison_are_kept(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"settings": {"seconds": 9}}))
    code, output = compare(faces, "--out", tmp_path, "--methods", "ggcn")
    assert code != 0
    assert "take another --out" in output
    assert json.loads((tmp_path / "results.json").read_text()) == {"settings": {"seconds": 9}}


@pytest.mark.slow
def test_methods_get_equal_time_and_a_second_call_finds_nothing_to_do(faces: Path, tmp_path: Path) -> None:
    args = [faces, "--out", tmp_path, "--methods", "ggcn,dcgan", "--variant", "kl", "ggcn_contrastive"]
    args += ["model.flow.gamma=[0.0]", "--seconds", 2, "--seeds", 2, "--count", 24, "--size", 16]
    args = [*args, "--real", 40]
    code, output = compare(*args)
    assert code == 0, output
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result["rows"]) == {f"{name}-{seed}" for name in ("ggcn", "dcgan", "kl") for seed in (0, 1)}
    for row in result["rows"].values():
        assert row["steps"] * result["costs"][row["method"]] == pytest.approx(2, rel=0.2)
    assert (tmp_path / "pictures.png").is_file()
    code, output = compare(*args)
    assert code == 0, output
    assert "steps in" not in output
    assert json.loads((tmp_path / "results.json").read_text()) == result


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--seeds", "0"], "must be above 0"),
        (["--parallel", "0"], "must be above 0"),
        (["--seconds", "nan"], "must be above 0"),
        (["--methods", ""], "say at least one"),
    ],
)
def test_flags_that_leave_nothing_to_compare_are_refused(args: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tool.check(tool.parser().parse_args(["shards", "--out", "out", *args]))
    tool.check(tool.parser().parse_args(["shards", "--out", "out"]))
