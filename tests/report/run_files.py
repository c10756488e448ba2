"""Run directories for the tests of the report, and a parser of its page."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from helpers import TINY

from ggcn import image_grid
from ggcn.config.compose import compose, to_yaml
from ggcn.run import event_log
from ggcn.run.directory import RunDir

HOSTILE = "</pre><script>alert(1)</script>&\"'"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The content of a page; raises on tags that are not closed properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def lines(path: Path, records: list[dict], torn: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


def metric_lines(steps: int) -> list[dict]:
    rng, result = np.random.default_rng(0), []
    for step in range(1, steps + 1):
        noise = rng.standard_normal(8)
        line = {"step": step, "health": "suspect" if 200 < step < 230 else "healthy"}
        for place, size in enumerate((4, 16)):
            line |= {f"energy_data/{size}": 0.2 * noise[0] - place, f"energy_samples/{size}": 0.3 * noise[1]}
            line |= {f"energy_gap/{size}": float(noise[2]) * (40 if 200 < step < 230 else 1)}
            line |= {
                f"jko/{size}": 1e-3 * step * np.exp(noise[3]),
                f"amortization/{size}": 0.3 / step * np.exp(noise[4]),
            }
            line |= {
                f"relative_displacement/{size}": 3 + noise[5] / 3,
                f"gradient/{size}": float(np.exp(noise[6])),
            }
            if step % 100 == 0:
                line |= {f"r2/{size}": 0.3 + step / 2000, f"r2_heldout/{size}": 0.3}
            line |= {f"saturation/{size}": 0.01 * noise[7] ** 2, f"data_saturation/{size}": 0.004}
        line |= {"energy_gradient_norm": float(np.exp(noise[0])), "upsampler_gradient_norm": 0.1}
        line |= {"seconds/data": 0.01, "seconds/sample": 0.4, "seconds/energy": 0.3, "seconds/upsampler": 0.2}
        line |= {"seconds/step": 1.0, "images_per_second": 16 + noise[1], "memory_gb": 0.5}
        result.append(line)
    return result


def begun(folder: Path, *overrides: str) -> RunDir:
    """A run directory that contains only a config."""
    run = RunDir(folder / "run")
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(compose([*TINY, "run=run", "train.steps=400", *overrides])))
    return run


def full(folder: Path, *overrides: str) -> RunDir:
    """A run that was stopped, killed and preempted, diverged once and goes on; the last lines are torn."""
    run = begun(folder, *overrides)
    lines(run.metrics, metric_lines(300), torn='{"step": 301, "energy_gap/4": 0.')
    now = time.time()
    events = [("start", 0, 5000), ("stop", 90, 4200), ("start", 90, 4000), ("start", 130, 3000)]
    lines(
        run.path / event_log.NAME,
        [
            {"event": event, "time": now - ago, "job": None, "step": step, "world": 2, "host": "n1", "pid": 1}
            | ({"reason": "SIGUSR2"} if event == "stop" else {})
            for event, step, ago in events
        ],
        torn='{"event": "st',
    )
    incident = {
        "step": 230,
        "attempt": 0,
        "reasons": ["energy_gap/16 1e+04, limit 50"],
        "rolled_back_to": 200,
    }
    lines(run.incidents, [incident | {"gave_up": False, "time": "2026-01-02T03:04:05+00:00", "signals": {}}])
    settings = {"count": 400, "seed": 0, "features": "efficientnet-lite2", "best": False}
    scores = [(100, 180.0, 0.2), (200, 93.5, 0.08), (300, 101.0, 0.09)]
    evaluations = [{"step": s, "time": now, "fid": f, "kid": k, **settings} for s, f, k in scores]
    lines(run.evaluations, evaluations, torn='{"step": 350, "fid": 1.0')
    for step in range(20, 301, 20):
        sheet(run, step)
    return run


def sheet(run: RunDir, step: int, start: str = "hidden") -> torch.Tensor:
    """Writes a sheet as the trainer does; returns the finest grid's chain ends."""
    images = [torch.rand(4, 3, size, size) * 2 - 1 for size in (16, 4, 4, 16, 16)]
    rows = list(
        zip(["data", "4 px start", "4 px refined", "16 px start", "16 px refined"], images, strict=True)
    )
    if start == "replay_buffer":
        rows.append(("replay buffer", images[1]))
    image_grid.save(image_grid.labelled_rows("title", rows, side=64), run.samples / f"step_{step:06d}.png")
    return images[-1]


def figures(text: str) -> list[str]:
    return re.findall(r"<figcaption>([^<]*)", text)


def compared(folder: Path) -> Path:
    """A sweep's folder: three runs that differ in their learning rate and in their numbers, and one without steps."""
    for place, rate in enumerate((0.0001, 0.001, 0.01)):
        run = full(folder / "tmp", f"train.energy.lr={rate}")
        lines(run.metrics, [_scaled(record, 1 + place / 4) for record in metric_lines(300)])
        fids = [(100, 180.0), (200, 95.0 + 9 * place), (300, 90.0 + 8 * place)]
        settings = {"count": 400, "features": "efficientnet-lite2"}
        lines(run.evaluations, [{"step": s, "fid": f, "kid": f / 1e3, **settings} for s, f in fids])
        run.path.rename(folder / f"lr-{rate:g}")
    begun(folder / "tmp", "train.energy.lr=0.1").path.rename(folder / "lr-0.1")
    (folder / "tmp").rmdir()
    return folder


def _scaled(record: dict, factor: float) -> dict:
    return {name: x if name in ("step", "health") else x * factor for name, x in record.items()}
