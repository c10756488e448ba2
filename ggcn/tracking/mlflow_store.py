"""MLflow."""

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ggcn.tracking.base import TrackedRun

TAG = "ggcn.key"
BATCH = 100
"""parameters in one request; MLflow allows no more"""
LONGEST = 500
"""characters of a parameter that every store takes"""
STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


class MlflowTracker:
    """One MLflow run, found again by a tag with the run's key.

    MLFLOW_TRACKING_URI says where; without it, it is mlflow.db beside the run directory, one store for all runs there.
    """

    def start(self, run: TrackedRun) -> None:
        beside = Path(run.folder).parent
        own = beside / "mlflow.db"
        if "MLFLOW_TRACKING_URI" not in os.environ and not own.exists():
            _create(own)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own}"
        self.client = MlflowClient(tracking_uri=uri)
        local = uri.startswith("sqlite:")
        experiment = self._experiment(run, str(beside / "mlartifacts") if local else None)
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{run.key}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, "RUNNING")
        else:
            self.run_id = self.client.create_run(
                experiment, tags={TAG: run.key}, run_name=run.name
            ).info.run_id
        self._log_config(run.config, found[0].data.params if found else {})

    def _experiment(self, run: TrackedRun, artifacts: str | None) -> str:
        name = run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ggcn"
        if known := self.client.get_experiment_by_name(name):
            return str(known.experiment_id)
        try:
            return str(self.client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another run has just created it
            known = self.client.get_experiment_by_name(name)
            if known is None:
                raise
            return str(known.experiment_id)

    def _log_config(self, config: dict[str, Any], logged: dict[str, str]) -> None:
        """A parameter cannot change in MLflow; one that did, such as train.steps, becomes a tag of its name."""
        texts = {name: str(value)[:LONGEST] for name, value in config.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in logged]
        changed = [RunTag(name, text) for name, text in texts.items() if logged.get(name, text) != text]
        for first in range(0, len(new), BATCH):
            self.client.log_batch(self.run_id, params=new[first : first + BATCH])
        if changed:
            self.client.log_batch(self.run_id, tags=changed)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=rows)

    def image(self, step: int, name: str, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path), name)

    def finish(self, outcome: str) -> None:
        self.client.set_terminated(self.run_id, STATUS.get(outcome, "FAILED"))


def _create(path: Path) -> None:
    """Creates an empty store, whole or not at all: MLflow makes its tables one by one, and a store whose process was
    killed meanwhile could never be opened again."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{temporary}")
        with suppress(FileExistsError):  # another run has just created it
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
