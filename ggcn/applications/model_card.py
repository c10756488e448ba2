"""The README.md of a published model: a model card in the format of the Hugging Face hub."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ggcn import __version__, files, json_lines
from ggcn.applications.hub import MODEL
from ggcn.run.directory import RunDir
from ggcn.sampling.sampler import Sampler

Row = dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """What a run does not know about itself."""

    name: str
    """of the model"""
    license: str = ""
    """of the weights, by its identifier, such as cc-by-4.0"""
    dataset: str = ""
    """what the training images are"""
    dataset_license: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Distances of samples and baselines from training images."""

    features: str
    """the network whose features are compared"""
    rows: dict[str, Row]
    """by what was compared: samples, held-out, ..."""


def evaluation(run: RunDir, step: int) -> Evaluation | None:
    """The newest result of `ggcn evaluate` on a checkpoint; else what training measured there; else None."""
    results = sorted(
        (run.path / "evaluations").glob(f"step_{step:08d}-*.json"), key=lambda path: path.stat().st_mtime
    )
    for path in reversed(results):
        result = json_lines.parse(files.read_bytes(path).replace(b"\n", b" "))
        if result and isinstance(result.get("distances"), dict) and "features" in result:
            return Evaluation(str(result["features"]), result["distances"])
    lines = files.read_text(run.evaluations).splitlines() if run.evaluations.exists() else []
    measured = [line for text in lines if (line := json_lines.parse(text)) and line.get("step") == step]
    return Evaluation(str(measured[-1]["features"]), {"samples": measured[-1]}) if measured else None


def card(sampler: Sampler, publication: Publication, measured: Evaluation | None) -> str:
    """The card as Markdown, with the hub's metadata in front."""
    metadata = yaml.safe_dump(_metadata(publication, measured), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{metadata}---",
        f"# {_line(publication.name)}",
        "![samples](samples.png)",
        "*Samples of seed 0 in a row, not selected.*",
        _summary(sampler),
        "## Use",
        _use(sampler),
        "## Training data",
        _data(sampler, publication),
        "## Training",
        _training(sampler),
        "## Evaluation",
        _table(measured, sampler),
        "## Limits",
        LIMITS,
        "## Citation",
        CITATION,
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(publication: Publication, measured: Evaluation | None) -> dict[str, Any]:
    """The entries that the hub reads."""
    entries: dict[str, Any] = {
        "library_name": "ggcn",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["energy-based-model", "langevin-dynamics", "image-generation", "ggcn"],
    }
    if publication.license:
        entries = {"license": publication.license, **entries}
    samples = measured.rows.get("samples", {}) if measured else {}
    if measured and "fid" in samples:
        dataset = _line(publication.dataset or "training images")
        metric = {
            "type": "fid",
            "value": round(float(samples["fid"]), 3),
            "name": f"FID ({measured.features} features)",
        }
        result = {
            "task": {"type": "unconditional-image-generation"},
            "dataset": {"name": dataset, "type": "images"},
            "metrics": [metric],
        }
        entries["model-index"] = [{"name": _line(publication.name), "results": [result]}]
    return entries


def _summary(sampler: Sampler) -> str:
    model, sizes = sampler.config.model, [str(grid.size) for grid in sampler.grids]
    grids = " and ".join(filter(None, [", ".join(sizes[:-1]), sizes[-1]]))
    weights = sum(p.numel() for net in (sampler.energies, sampler.upsamplers) for p in net.parameters())
    return (
        f"An energy-based generative ConvNet of [GGCN](https://arxiv.org/abs/1910.14216)'s family "
        f"(`model={model.name}`, an independent reconstruction): energies on grids of {grids} px, {weights:,} weights. "
        f"It draws RGB images of {sampler.grids[-1].size} px by up-sampling and short Langevin chains, grid by grid."
    )


def _use(sampler: Sampler) -> str:
    size = sampler.grids[-1].size
    return f"""```python
import ggcn  # {__version__}

model = ggcn.load("hf://user/name")  # or this folder, or its {MODEL}
images = model.sample(16, seed=0)  # [16, 3, {size}, {size}], float32, about [-1, 1]
energies = model.energy(images)  # [16, {len(sampler.grids)}], low is likely
```

Weights are safetensors; loading them runs no code from this folder."""


def _data(sampler: Sampler, publication: Publication) -> str:
    given = _line(publication.dataset) or "Not stated by the publisher."
    terms = _line(publication.dataset_license) or "not stated by the publisher"
    flips = "with" if sampler.config.data.flip else "without"
    return f"{given}\n\nLicense of the data: {terms}. Seen at {sampler.grids[-1].size} px, {flips} mirror images."


def _training(sampler: Sampler) -> str:
    config, metadata = sampler.config, sampler.metadata
    code = str(metadata.get("commit", ""))[:12] or str(metadata.get("code", "unknown"))
    code += " and uncommitted changes" if metadata.get("dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in metadata.get("versions", {}).items())
    rows = {
        "steps": metadata.get("step", "unknown"),
        "batch": config.train.batch,
        "objective": config.model.flow.objective,
        "learning rates": f"energies {config.train.energy.lr:g}, up-samplers {config.train.upsampler.lr:g}",
        "averaged weights": f"decay {config.train.ema:g}",
        "precision": config.engine.precision,
        "seed": config.seed,
        "began with": Path(config.train.init_from).name or "initial weights",
        "code": code,
        "versions": versions or "unknown",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines, "", "All settings: config.json."])


COLUMNS = {
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "count": "images",
    "against": "against",
}


def _table(measured: Evaluation | None, sampler: Sampler) -> str:
    """The distances, with their features named; a sentence where nothing was measured."""
    if not measured:
        return (
            f"Not evaluated at step {sampler.metadata.get('step')}: `ggcn evaluate RUN`, then export again."
        )
    present = [key for key in COLUMNS if any(key in row for row in measured.rows.values())]
    header = f"| | {' | '.join(COLUMNS[key] for key in present)} |\n|{' --- |' * (len(present) + 1)}"
    note = (
        f"Features: **{measured.features}**; distances from training images. FIDs of other features, counts or "
        "preprocessing do not compare with these."
    )
    return "\n".join([header, *_rows(measured, present)]) + f"\n\n{note}"


def _rows(measured: Evaluation, present: list[str]) -> Iterator[str]:
    for name, row in measured.rows.items():
        cells = [
            f"{row[key]:.4g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in present
        ]
        yield f"| {_line(name)} | {' | '.join(cells)} |"


def _line(text: str) -> str:
    """A text on one line, without what Markdown's tables and HTML take for their own."""
    return " ".join(text.split()).replace("|", "/").replace("<", "(").replace(">", ")")


def config_json(sampler: Sampler, public: str) -> str:
    """config.json: what the hub counts downloads by, with the public part of the config."""
    facts = {
        "library_name": "ggcn",
        "ggcn_version": __version__,
        "step": sampler.metadata.get("step"),
        "config": yaml.safe_load(public),
    }
    return json.dumps(facts, indent=1, default=str) + "\n"


LIMITS = """- The model knows its training images alone: no labels, no text, and no other subjects or sizes.
- Trained on few images it may reproduce some of them; `ggcn evaluate` measures that (memorization).
- Its energies rank images of the training set's kind; they are no calibrated likelihoods and no test of authenticity.
- Whatever the training images are skewed to, samples are, too. Do not take samples of faces for real people."""

CITATION = """```bibtex
@software{ggcn,
  title = {GGCN: a training harness for energy-based generative ConvNets},
  author = {The GGCN developers},
  license = {Apache-2.0}
}
@article{wu2019generalizing,
  title = {Generalizing Energy-based Generative ConvNets from Particle Evolution Perspective},
  author = {Wu, Yang and Wei, Pengxu and Cai, Xu and Li, Guanbin and Lin, Liang},
  year = {2019},
  note = {arXiv:1910.14216, withdrawn; this software is an independent reconstruction}
}
```"""
