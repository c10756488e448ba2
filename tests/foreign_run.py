"""A run as another person hands it over, made without training."""

import json
from pathlib import Path
from typing import Any

import torch
from helpers import TINY

from ggcn import files
from ggcn.config import compose
from ggcn.models import build
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir

META = {"step": 5, "world": 1, "data": "0" * 64, "health": "healthy", "sampling": {"time": [1.5, 1.6]}}


def foreign_run(path: Path) -> RunDir:
    """A tiny untrained model at step 5, with its events, metrics, evaluations and an incident."""
    run = RunDir(path)
    config = compose.compose([*TINY, "model.grids=[4,8]", "data.shards=nowhere", "run=tiny"])
    folder = run.checkpoints / checkpoint.name(5)
    folder.mkdir(parents=True)
    run.config.write_text(compose.to_yaml(config), encoding="utf-8")
    nets = dict(zip(("energies", "upsamplers"), build(config), strict=True))
    torch.save({name: net.state_dict() for name, net in nets.items()}, folder / "ema.pt")
    commit(folder, described(folder))
    files.write_json(run.checkpoints / "best", {"checkpoint": folder.name, "fid": 9.5})
    start = {"event": "start", "time": 1e9, "host": "here", "pid": 1, "step": 0, "mode": "local", "world": 1}
    _write_lines(
        run.path / "submissions.jsonl", [start, {"event": "stop", "time": 2e9, "reason": "TERM", "step": 5}]
    )
    _write_lines(
        run.metrics, [{"step": n, "energy_loss": 0.5, "r2/8": 0.1, "seconds/step": 0.1} for n in (1, 5)]
    )
    _write_lines(run.evaluations, [{"step": 5, "fid": 9.5, "kid": 0.1, "seconds": 3.0}])
    _write_lines(run.incidents, [{"step": 4, "reasons": ["gap"], "signals": {"gap": 9.0}, "time": 1e9}])
    return run


def described(folder: Path) -> bytes:
    """The meta.json that fits the weights in a checkpoint's folder."""
    weights = folder / "ema.pt"
    entry = {"bytes": weights.stat().st_size, "sha256": files.sha256(weights)}
    return json.dumps({**META, "files": {"ema.pt": entry}}).encode()


def commit(folder: Path, meta: bytes) -> None:
    """Writes a meta.json and the COMPLETE that fits it, as a forger would."""
    (folder / "meta.json").write_bytes(meta)
    (folder / "COMPLETE").write_text(files.sha256(folder / "meta.json") + "\n", encoding="utf-8")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
