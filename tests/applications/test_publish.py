"""A folder for others: what it holds, that it tells no secrets, and that it is loaded from everywhere it may lie."""

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, call, quiet_environment
from PIL import Image
from test_loading import trained

import ggcn
from ggcn.applications.model_card import Publication
from ggcn.applications.publish import publish
from ggcn.errors import UserError

ABOUT = Publication("Tiny faces", "cc-by-4.0", "Noise | <b>made</b> here", "public domain")


@pytest.fixture
def run(tmp_path: Path, alone: None) -> Path:
    """A run directory with a checkpoint at step 5, that was evaluated."""
    run = trained(tmp_path / "a run", "data.shards=/home/me/secret/shards")
    distances = {
        "samples": {"fid": 12.3456, "kid": 0.004, "count": 256, "against": 655},
        "held-out": {"fid": 15.8, "count": 122, "against": 655},
    }
    (run / "evaluations").mkdir()
    result = {"features": "efficientnet-lite2", "distances": distances}
    (run / "evaluations/step_00000005-x.json").write_text(json.dumps(result, indent=1))
    return run


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """Its folder for others."""
    publish(run, tmp_path / "tiny", ABOUT)
    return tmp_path / "tiny"


def metadata(card: str) -> dict:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_folder_has_a_card_with_what_the_hub_reads(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "samples.png",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    facts = metadata(card)
    assert (facts["license"], facts["library_name"]) == ("cc-by-4.0", "ggcn")
    (result,) = facts["model-index"][0]["results"]
    assert result["metrics"] == [
        {"type": "fid", "value": 12.346, "name": "FID (efficientnet-lite2 features)"}
    ]
    assert "| samples | 12.35 | 0.004 | 256 | 655 |" in card
    assert "| held-out | 15.8 |  | 122 | 655 |" in card
    assert "Features: **efficientnet-lite2**" in card
    assert "Noise / (b)made(/b) here" in card
    assert "License of the data: public domain" in card
    assert "| steps | 5 |" in card
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.size == (8 * (128 + 1) - 1, 4 * (128 + 1) - 1)
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["model"]["grids"] == [4, 16]
    assert "paths" not in config["config"]


def test_the_hub_s_own_library_reads_the_card(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(folder / "README.md").data
    assert data.pipeline_tag == "unconditional-image-generation"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == (
        "fid",
        12.346,
        "Noise / (b)made(/b) here",
    )


def test_a_folder_is_loaded_and_a_card_without_numbers_says_so(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    expected = ggcn.load(run).sample(2)
    assert torch.equal(ggcn.load(folder).sample(2), expected)
    (run / "evaluations/step_00000005-x.json").unlink()
    publish(run, folder, Publication("again"))  # in place of the earlier one
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated at step 5" in card
    assert "model-index" not in metadata(card)
    assert "License of the data: not stated" in card
    lines = [{"step": step, "fid": step + 0.5, "features": "inception", "count": 64} for step in (4, 5)]
    (run / "evaluations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    publish(run, folder, Publication("again"))  # with what training measured at this step
    assert "| samples | 5.5 | 64 |" in (folder / "README.md").read_text(encoding="utf-8")
    for taken in (run, tmp_path):
        with pytest.raises(UserError, match="holds something else"):
            publish(run, taken, ABOUT)


@pytest.mark.slow
def test_the_command_writes_the_folder(run: Path, tmp_path: Path) -> None:
    done = call("tools/export.py", run, "--card", "--out", tmp_path / "card", "--license", "cc0-1.0")
    assert done.returncode == 0, done.stderr
    assert metadata((tmp_path / "card/README.md").read_text(encoding="utf-8"))["license"] == "cc0-1.0"
    refused = call("tools/export.py", run, "--out", tmp_path / "x.safetensors", "--license", "cc0-1.0")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "add --card" in refused.stderr


@contextlib.contextmanager
def hub_server(file: Path) -> Iterator[str]:
    """What the hub answers for one repository, me/tiny, at revision main, on 127.0.0.1."""
    data, commit = file.read_bytes(), "a" * 40

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if not self.path.startswith("/me/"):
                return self.missing("RepoNotFound")
            if self.path.startswith("/me/empty/"):
                return self.missing("EntryNotFound")
            if not self.path.startswith(("/me/tiny/resolve/main/", f"/me/tiny/resolve/{commit}/")):
                return self.missing("RevisionNotFound")
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(data)))
            return self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(data)

        def missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


PROGRAM = """
import sys, ggcn
from ggcn.errors import UserError
for address in sys.argv[1:]:
    try:
        print(tuple(ggcn.load(address).sample(1).shape))
    except UserError as error:
        print(error)
"""


def test_a_model_of_the_hub_is_loaded_by_its_address(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    addresses = ["hf:/me/tiny", "hf://me/tiny@v7", "hf://me/empty", "hf://you/none", "hf://tiny"]
    with hub_server(folder / "model.safetensors") as endpoint:
        local = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *addresses],
            env={**quiet_environment(), **local, "CUDA_VISIBLE_DEVICES": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(1, 3, 16, 16)",
        "hf://me/tiny@v7: there is no revision v7",
        "hf://me/empty has no model.safetensors, so it was not written by `ggcn export --card`",
        "there is no hf://you/none, or it is private; check the name, or log in with `hf auth login`",
        "hf://tiny names no model on the hub; write hf://user/name or hf://user/name@REVISION",
    ]


def test_without_the_library_an_address_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf://me/tiny needs huggingface_hub; pip install 'ggcn\[hub\]'"):
        ggcn.load("hf://me/tiny")
