"""The notebooks in examples/ run from top to bottom, one after the other, in an empty folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, quiet_environment

NOTEBOOKS = ("train_small", "use_model")


def notebook(name: str) -> dict:
    return json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code(name: str) -> str:
    """All code cells of a notebook as one program, each cell's last line being kept as a value is in a notebook."""
    cells = (cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    content = notebook(name)
    assert content["nbformat"] == 4
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in content["cells"])
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


def test_all_cells_run_in_order(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/faces16").symlink_to(faces)
    program = "\n\n".join(map(code, NOTEBOOKS))
    environment = quiet_environment() | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.safetensors").is_file()
    assert (tmp_path / "runs/small/checkpoints/step_00000025/COMPLETE").is_file()
