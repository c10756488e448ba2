"""The run directory: one folder, named by the user, that holds all that a run is."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.compose import flatten, load, to_yaml
from ggcn.config import Config
from ggcn.errors import UserError

FREE = (
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
    "data.workers",
    "data.prefetch",
    "data.verify",
    "data.bad_share",
    "data.cache",
    "data.retries",
    "data.backoff",
    "data.allow_pipe",
)
"""keys that may change over a run's life: they say where, how long and by what machinery, not what is computed
(the shards' content is compared by hash, wherever it lies)"""

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ("ggcn", "cluster", "configs", "tools", "pyproject.toml")


@dataclass(frozen=True)
class RunDir:
    """`runs/NAME` and the places in it."""

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
        """Pictures by step."""
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
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.path / "tensorboard"

    @classmethod
    def of(cls, config: Config) -> "RunDir":
        """The directory that a config names, absolute."""
        return cls(Path(config.paths.runs).resolve() / config.run)

    def refuse_changes(self, config: Config) -> None:
        """Raises UserError with the differences when the run exists with another config."""
        changes = differences(load(self.config), config) if self.config.exists() else []
        if changes:
            raise UserError(
                f"{self.path} was started with another config ({'; '.join(changes)}); "
                "take another run=NAME, or say --force to go on with the new values"
            )

    def freeze(self, config: Config) -> None:
        """Writes the config, and a copy of the code for the record."""
        files.write_text(self.config, to_yaml(config))
        self._copy_code()

    @contextmanager
    def alone(self, who: str) -> Iterator[None]:
        """Holds the run for this process; raises UserError while another one does.

        Two locks, by `who`: the launcher's, and rank 0's, which outlives a launcher that was killed. (lockf,
        since flock would be shared with forked loader workers, which may outlive a killed rank.)
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".lock-{who}").open("w", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(
                    f"{self.path} is being trained by another process; wait for it, or take another run=NAME"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield

    def _copy_code(self) -> None:
        for name in SNAPSHOT:
            source, target = ROOT / name, self.path / "code" / name
            if source.is_dir():
                shutil.copytree(
                    source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            elif source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def differences(old: Config, new: Config) -> list[str]:
    """ "key: old -> new" for every key that belongs to what a run computes."""
    before, after = identity(old), identity(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def identity(config: Config) -> dict[str, Any]:
    """{dotted key: value} of all that belongs to what a run computes."""
    # of a mixture, as of data.shards, the folders may move: the weights in their order are what counts
    flat = flatten(config) | {"data.mixture": list(config.data.mixture.values())}
    return {key: value for key, value in flat.items() if not key.startswith(FREE)}
