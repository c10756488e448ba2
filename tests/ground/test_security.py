"""The promises of SECURITY.md, each by what an attacker would try. They are numbered as there."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_run import META, commit, described, foreign_run
from helpers import ROOT, quiet_environment
from PIL import Image

from ggcn.applications import export
from ggcn.config import compose
from ggcn.config.data import DataConfig
from ggcn.data import manifest_file, shard_index
from ggcn.errors import UserError
from ggcn.report import layout
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir
from ggcn.sampling import sampler
from ggcn.shards import crop


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run from somebody else."""
    return foreign_run(tmp_path / "run")


class Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_1_weights_that_would_run_code_are_refused(run: RunDir, tmp_path: Path) -> None:
    folder, mark = run.checkpoints / checkpoint.name(5), tmp_path / "mark"
    torch.save({"energies": Bomb(mark), "upsamplers": {}}, folder / "ema.pt")
    commit(folder, described(folder))
    with pytest.raises(Exception, match=r"(?i)weights"):
        sampler.load(run.path)
    assert not mark.exists()


@pytest.mark.parametrize("exported", [False, True])
def test_2_a_foreign_config_cannot_allow_itself_commands(run: RunDir, tmp_path: Path, exported: bool) -> None:
    mark = tmp_path / "mark"
    text = run.config.read_text(encoding="utf-8")
    assert "shards: nowhere" in text
    text = text.replace("shards: nowhere", f"shards: 'pipe:touch {mark}; cat {{}}'")
    run.config.write_text(text.replace("allow_pipe: false", "allow_pipe: true"), encoding="utf-8")
    path = run.path
    if exported:
        path = tmp_path / "model.safetensors"
        export.export(run.path, path)
    loaded = export.load(path)
    assert loaded.config.data.allow_pipe is False
    loaded.sample(1)
    assert not mark.exists()


def test_3_a_foreign_config_reads_nothing_of_the_environment(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_X", "s3cr3t")
    text = run.config.read_text(encoding="utf-8").replace("name: ggcn", "name: ${oc.env:SECRET_X}")
    assert "SECRET_X" in text
    with pytest.raises(UserError) as caught:
        compose.parse(text, run.config)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x.tar", "/etc/x.tar", "a/b.tar", "-x.tar", "x.tar\n", "$(id).tar"])
def test_4_a_manifest_names_no_file_outside_its_folder(faces: Path, name: str) -> None:
    value = json.loads((faces / "manifest.json").read_text(encoding="utf-8"))
    value["shards"][0]["name"] = name
    with pytest.raises(UserError, match="damaged"):
        manifest_file.parse(json.dumps(value), "manifest.json", faces)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd"])
def test_4_a_checkpoint_names_no_file_outside_its_folder(run: RunDir, path: str) -> None:
    folder = run.checkpoints / checkpoint.name(5)
    commit(folder, json.dumps({**META, "files": {path: {"bytes": 1, "sha256": "0" * 64}}}).encode())
    assert checkpoint.faults(folder) == "meta.json names a file outside"


def test_5_bytes_that_changed_are_not_accepted(run: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export.export(run.path, path)
    for file in (path, run.checkpoints / checkpoint.name(5) / "ema.pt"):
        data = bytearray(file.read_bytes())
        data[-20] ^= 1
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"damaged|altered"):
            export.load(path if file == path else run.path)


def test_6_a_picture_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    program = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(%pipe%id) (r) file\n%%EOF\n"
    )
    with pytest.raises(ValueError, match="a program, which is not run"):
        list(crop.samples_of(program, crop.Options(16), {}))
    assert not started


def test_6_a_picture_of_a_terabyte_is_refused_by_its_header() -> None:
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, "BMP")
    data = bytearray(out.getvalue())
    data[18:26] = (600_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match="pixels are too many"):
        list(crop.samples_of(bytes(data), crop.Options(16), {}))


def test_7_a_report_runs_no_script_but_its_own_and_fetches_nothing(run: RunDir) -> None:
    hostile = "</pre><script>alert(1)</script><img src=http://example.org/x>"
    run.incidents.write_text(
        json.dumps({"step": 4, "reasons": [hostile], "time": 1e9}) + "\n", encoding="utf-8"
    )
    page = layout.write(run, run.path / "page.html", None).read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert page.count("<script") == 1
    assert "script>alert" not in page
    assert "script-src 'sha256-" in page
    assert "<img src=http" not in page
    assert "default-src 'none'" in page


def test_8_what_is_handed_on_holds_no_credentials(run: RunDir, tmp_path: Path) -> None:
    text = run.config.read_text(encoding="utf-8")
    secret = "shards: https://ann:s3cr3t@example.org/a?X-Signature=t0ken"
    run.config.write_text(text.replace("shards: nowhere", secret), encoding="utf-8")
    export.export(run.path, tmp_path / "model.safetensors")
    page = layout.write(run, run.path / "page.html", None).read_bytes()
    for data in (page, *(path.read_bytes() for path in tmp_path.glob("model.*"))):
        assert b"s3cr3t" not in data
        assert b"t0ken" not in data


OFFLINE = """
import socket, sys, runpy
def refuse(self, address, *rest):
    raise SystemExit(f"it connects to {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *args, **_: refuse(None, args)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("tools/sample.py", ["--count", "1", "--out", "x.png"]),
        ("tools/report.py", []),
        ("cluster/status.py", []),
    ],
)
def test_9_nothing_is_sent_anywhere(run: RunDir, tmp_path: Path, script: str, args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(ROOT / script), str(run.path), *args],
        capture_output=True,
        text=True,
        env=quiet_environment(),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_10_a_server_is_asked_only_where_the_user_names_it(run: RunDir) -> None:
    from ggcn.evaluation.evaluate import _training_shards

    for folder in (
        "http://169.254.169.254/latest",
        "s3://bucket/x",
        "pipe:cat {}",
        "$HOME/x",
        "${oc.env:HOME}",
    ):
        with pytest.raises(UserError, match="--data SHARDS"):
            _training_shards(folder)


def test_10_a_shell_command_needs_the_readers_permission() -> None:
    with pytest.raises(UserError, match="runs a shell command"):
        shard_index.load_manifest("pipe:cat {}", DataConfig())
