"""The run directory: one folder, named by the user, that holds all that a run is."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn import files, locks
from ggcn.config.compose import load, to_yaml
from ggcn.config.keys import flatten
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.run import code_snapshot

MUTABLE = (
    "run",
    "paths.",
    "cluster.",
    "log.",
    "checkpoint.",
    "guard.",
    "evaluation.",
    "train.steps",
    "train.accumulation",
    "model.chain.micro_batch",
    "engine.kind",
    "engine.zero_stage",
    "data.shards",
    "data.size",
    "data.holdout",
    "data.workers",
    "data.prefetch",
    "data.verify",
    "data.max_bad_fraction",
    "data.cache",
    "data.retries",
    "data.backoff",
    "data.allow_pipe",
)
"""keys that may change between starts of a run: they say where, how long and by what means it trains, not what it
computes (the shards' content is compared by hash, wherever it lies, and a run may be moved and renamed)"""


class RunTaken(UserError):
    """Another process has the run locked."""


@dataclass(frozen=True)
class RunDir:
    """`runs/NAME` and the paths of the files in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The frozen config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def incidents(self) -> Path:
        """One JSON object per divergence."""
        return self.path / "incidents.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON object per evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def samples(self) -> Path:
        """Sheets of samples by step."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """step_N folders and the file `latest`."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """One log per rank."""
        return self.path / "logs"

    @property
    def heartbeats(self) -> Path:
        """The ranks' heartbeat files."""
        return self.path / "heartbeats"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def code(self) -> Path:
        """The copy of the code that runs now, named by its hash; those of earlier starts lie next to it."""
        return self.path / "code" / code_snapshot.digest()

    def log(self, rank: int) -> Path:
        """The log of a rank."""
        return self.logs / f"rank_{rank:04d}.log"

    def error(self, rank: int) -> Path:
        """Where a rank leaves the sentence about an error that the user must fix."""
        return self.logs / f"rank_{rank:04d}.error"

    def transient_error(self, rank: int) -> Path:
        """Where a rank leaves the sentence about an error that a restart may fix."""
        return self.logs / f"rank_{rank:04d}.transient"

    def stacks(self, rank: int) -> Path:
        """Where a hanging rank leaves its stack traces."""
        return self.logs / f"rank_{rank:04d}.stacks"

    @classmethod
    def of(cls, config: Config) -> "RunDir":
        """The directory that a config names, absolute."""
        return cls(Path(config.paths.runs).resolve() / config.run)

    def refuse_changes(self, config: Config) -> None:
        """Raises UserError with the differences when the run exists with another config."""
        if changes := self.changes(config):
            raise UserError(
                f"{self.path} was started with another config ({'; '.join(changes)}); "
                "take another run=NAME, or add --force to go on with the new values"
            )

    def changes(self, config: Config) -> list[str]:
        """What differs between `config` and the one that the run was started with, see `differences`. Raises
        UserError when that cannot be read."""
        return differences(load(self.config), config) if self.config.exists() else []

    def freeze(self, config: Config) -> None:
        """Writes the config with its paths absolute, and a copy of the code. Raises UserError when the disk refuses."""
        with self.writable():
            files.write_text(self.config, to_yaml(absolute(config)))
            code_snapshot.save(self.code)

    @contextmanager
    def exclusive(self, who: str) -> Iterator[None]:
        """Locks the run for this process.

        Raises RunTaken while another process has it, UserError when it cannot be written.

        `who` names one of two locks: "launcher", or "rank", which rank 0 holds and which outlives a killed launcher.
        """
        with ExitStack() as stack:
            try:
                with self.writable():
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locks.exclusive_lock(self.path / f".lock-{who}"))
            except locks.LockTaken:
                raise RunTaken(
                    f"{self.path} is being trained by another process; wait for it, or take another run=NAME"
                ) from None
            yield

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turns what the system refuses, such as a full disk, into a UserError that names the run directory."""
        try:
            yield
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}{where}); free it, or name another folder "
                "by paths.runs=FOLDER"
            ) from error


def differences(old: Config, new: Config) -> list[str]:
    """ "key: old -> new" for every key that belongs to what a run computes."""
    before, after = identity(old), identity(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def absolute(config: Config) -> Config:
    """A copy of the config with every local path absolute: what is relative starts from the folder of the launch."""
    config = deepcopy(config)
    data, evaluation = config.data, config.evaluation
    config.paths.runs = _absolute(config.paths.runs)
    data.shards, data.cache_dir = _absolute(data.shards), _absolute(data.cache_dir)
    data.mixture = {_absolute(folder): weight for folder, weight in data.mixture.items()}
    data.holdout = _absolute(data.holdout)
    config.checkpoint.copy_to = _absolute(config.checkpoint.copy_to)
    evaluation.weights, evaluation.cache = _absolute(evaluation.weights), _absolute(evaluation.cache)
    return config


def _absolute(location: str) -> str:
    """A local path made absolute, symbolic links kept. A URL, a command, an empty string, and a path that begins with
    a variable, which may only be set where the ranks run, stay as they are."""
    path = location.removeprefix("file://")
    kept = not path or path.startswith(("$", "pipe:")) or "://" in path
    return location if kept else os.path.abspath(path)


def identity(config: Config) -> dict[str, Any]:
    """{dotted key: value} of all that belongs to what a run computes."""
    # of a mixture, as of data.shards, the folders may move: the weights in their order are what counts
    flat = flatten(config) | {"data.mixture": list(config.data.mixture.values())}
    return {key: value for key, value in flat.items() if not key.startswith(MUTABLE)}
