"""The weights that a run begins with, for train.init_from: found in another run or in an exported file, and copied into
the run directory, so that the run never needs its source again. Imports no torch.

runs/NAME/init/
    config.yaml                       the source's frozen config, where it is a run
    ema.pt                            averaged weights of its checkpoint; of raw ones: its engines' state.pt too
    model.safetensors                 or the exported file, alone
    source.json                       where they came from: path, step, weights, and the hash of the files
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.config.schema import Config
from ggcn.errors import UserError

log = logging.getLogger(__name__)

FOLDER, FACTS = "init", "source.json"
EXPORTED = "model.safetensors"
AVERAGED = ("ema.pt",)
RAW = ("ema.pt", "energy/state.pt", "upsampler/state.pt")
"""files of a checkpoint; a model whose up-samplers have nothing to learn has no upsampler/state.pt"""


@dataclass(frozen=True)
class Source:
    """Weights to begin with."""

    path: Path
    """of the run directory or the exported file"""
    step: int | None
    """of the checkpoint; an exported file's is in its metadata"""
    weights: dict[str, Path]
    """{name below init/: file}"""

    @property
    def config(self) -> Path | None:
        """The frozen config of a run; an exported file has its own inside."""
        return self.path / "config.yaml" if self.step is not None else None


def with_hash(config: Config, old: Config | None) -> Config:
    """The config with train.init_hash, and train.init_from as a plain path. `old`: the frozen config of the run, if it
    exists; where it names the same source, the hash is its, and the source need not exist any more.

    Raises UserError when there are no such weights, or when their hash is another than the one given.
    """
    train = config.train
    if not train.init_from:
        return config
    config = deepcopy(config)
    config.typed.pop("train.init_from", None)
    config.train.init_from = location(train.init_from)
    if old and (same := _same_source(config, old)):
        config.train.init_hash = train.init_hash or same
        return config
    found = hash_of(find(config).weights)
    _refuse_other_hash(config, found)
    config.train.init_hash = found
    return config


def _same_source(config: Config, old: Config) -> str:
    """The frozen hash where two configs name one source; else an empty string."""
    one, two = config.train, old.train
    same = location(two.init_from) == one.init_from and two.init_weights == one.init_weights
    return two.init_hash if same else ""


def _refuse_other_hash(config: Config, found: str) -> None:
    given = config.train.init_hash
    if given and given != found:
        raise UserError(
            f"the weights of train.init_from={config.train.init_from} have the hash {found}, not "
            f"train.init_hash={given}; name their source, or leave train.init_hash out"
        )


def freeze(config: Config, run: Path, old: Config | None) -> Config:
    """As `with_hash`, and copies the weights into the run directory `run`, unless they are there or the same source's
    were removed after the run began. Raises UserError when there are no such weights."""
    config = with_hash(config, old)
    if not config.train.init_from or config.train.init_hash == kept_hash(run):
        return config
    if old and old.train.init_hash == config.train.init_hash and any(run.glob("checkpoints/step_*/COMPLETE")):
        return config
    source = find(config)
    with_facts = {"path": str(source.path), "step": source.step, "weights": config.train.init_weights}
    _copy(source, run / FOLDER, with_facts, config)
    return config


def _copy(source: Source, folder: Path, facts: dict[str, Any], config: Config) -> None:
    """Copies the source's files to `folder`, completely or not at all, when they have the config's hash."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    copies = {name: temporary / name for name in source.weights}
    try:
        for name, path in source.weights.items():
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copies[name])
        if source.config:
            shutil.copyfile(source.config, temporary / "config.yaml")
        _refuse_other_hash(config, found := hash_of(copies))
        files.write_json(temporary / FACTS, {**facts, "sha256": found, "files": list(copies)})
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept_hash(run: Path) -> str:
    """The hash of the weights that a run directory has in init/; empty where there are none."""
    return str(facts(run).get("sha256", ""))


def facts(run: Path) -> dict[str, Any]:
    """What source.json of a run directory says; empty where the run began anew."""
    try:
        return json.loads(files.read_bytes(run / FOLDER / FACTS))
    except (OSError, ValueError):
        return {}


def hash_of(weights: dict[str, Path]) -> str:
    """The hash of weights: the SHA-256 of their file; of several files that of their sums and names."""
    sums = {name: files.sha256(path) for name, path in sorted(weights.items())}
    if len(sums) == 1:
        return next(iter(sums.values()))
    return hashlib.sha256("".join(f"{value}  {name}\n" for name, value in sums.items()).encode()).hexdigest()


def location(text: str) -> str:
    """train.init_from as an absolute path, with its @STEP; an empty string stays. Raises UserError for an address."""
    if "://" in text:
        raise UserError(f"train.init_from={text} is no path; download the model, and name its folder or file")
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def find(config: Config) -> Source:
    """The weights that train.init_from names. Raises UserError when there are none, or they are damaged."""
    text, kind = config.train.init_from, config.train.init_weights
    path, step = _split(text)
    if not (path / "config.yaml").exists() and (path / EXPORTED).is_file():
        path = path / EXPORTED  # in a folder of export --card
    if path.is_file():
        if kind == "raw":
            raise UserError(
                f"train.init_from={text} is an exported file, which has averaged weights alone; set "
                "train.init_weights=averaged, or name the run"
            )
        return Source(path, None, {EXPORTED: path})
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"train.init_from={text} is neither a run directory (RUN or RUN@STEP) nor an exported file"
        )
    for _ in range(3):  # a run that continues prunes its checkpoints meanwhile
        try:
            return _find_checkpoint(path, step, RAW if kind == "raw" else AVERAGED)
        except FileNotFoundError:
            continue
    raise UserError(f"checkpoints of train.init_from={text} vanish while they are read; name one by RUN@STEP")


def _split(text: str) -> tuple[Path, int | None]:
    """A path, and the step after its last @, unless the path itself ends so."""
    name, _, step = text.rpartition("@")
    if name and step.isdecimal() and not os.path.exists(text):
        return Path(name), int(step)
    return Path(text), None


def _find_checkpoint(run: Path, step: int | None, names: tuple[str, ...]) -> Source:
    """The newest valid checkpoint of a run, or the one at `step`."""
    folders = list(_folders(run, step))
    damaged = []
    for number, folder in folders:
        if fault := _fault(folder, names):
            damaged.append(f"{folder.name}: {fault}")
            log.warning("checkpoint %s cannot be begun with (%s)", folder, fault)
            continue
        present = {name: folder / name for name in names if (folder / name).is_file()}
        return Source(run, number, present)
    why = "; ".join(damaged) or (f"no checkpoint of step {step}" if step is not None else "no checkpoint yet")
    existing = ", ".join(str(number) for number, _ in _folders(run, None)) or "none"
    raise UserError(
        f"train.init_from: {run} has no valid checkpoint to begin with ({why}); its steps: {existing}"
    )


def _folders(run: Path, step: int | None) -> Iterator[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, newest first, or of the one at `step`."""
    found = {path.name.removeprefix("step_"): path for path in (run / "checkpoints").glob("step_*")}
    numbered = {int(suffix): path for suffix, path in found.items() if suffix.isdecimal()}
    return ((n, numbered[n]) for n in sorted(numbered, reverse=True) if step in (None, n))


def _fault(folder: Path, names: tuple[str, ...]) -> str | None:
    """Why the files `names` of a checkpoint are not what was saved, or None; those it never had do not count."""
    if not (folder / "COMPLETE").is_file():
        return "COMPLETE is missing"
    if files.sha256(folder / "meta.json") != files.read_text(folder / "COMPLETE").strip():
        return "meta.json was altered"
    try:
        saved = json.loads(files.read_bytes(folder / "meta.json"))["files"]
        sums = {name: saved[name]["sha256"] for name in names if name in saved}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "meta.json describes no files"
    altered = [name for name, value in sums.items() if files.sha256(folder / name) != value]
    return f"{altered[0]} was altered" if altered else None
