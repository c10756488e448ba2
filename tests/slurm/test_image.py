"""The image that cluster/build_image.sh builds trains a run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT, TINY, call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("debootstrap") and os.getuid() == 0),
        reason="needs root, buildah and debootstrap",
    ),
]
SETTINGS = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}


def test_an_image_built_from_a_debian_root_trains_two_ranks(tmp_path: Path) -> None:
    made = call("tools/make_shards.py", "demo:faces", tmp_path / "shards", "--size", 16)
    assert made.returncode == 0, made.stderr
    subprocess.run([ROOT / "cluster/build_image.sh", "ggcn-test"], check=True, timeout=1800)
    environment = {**os.environ, **SETTINGS}
    container = subprocess.check_output(["buildah", "from", "ggcn-test"], text=True, env=environment).strip()
    try:
        overrides = [*TINY, "data.shards=/shards", "run=a", "train.steps=3", "cluster.ranks=2"]
        launch = ["ggcn", "launch", "-m", "local", "paths.runs=/tmp/runs", *overrides]
        inside = ["buildah", "run", "--volume", f"{tmp_path / 'shards'}:/shards:ro", container, "--", *launch]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr
        assert "complete, step_00000003" in done.stdout + done.stderr
    finally:
        subprocess.run(["buildah", "rm", container], env=environment)
        subprocess.run(["buildah", "rmi", "ggcn-test"], env=environment)
