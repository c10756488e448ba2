"""Weights & Biases."""

import logging
import os
from pathlib import Path

import wandb

from ggcn.tracking.base import TrackedRun

log = logging.getLogger(__name__)

FINISH_S = 8.0
"""seconds for uploading what is left at the end; the rest stays in RUN/wandb for `wandb sync`"""


class WandbTracker:
    """One W&B run with the run's key as its id, so that every start continues it.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and a login are W&B's own. Without a login and without WANDB_MODE it writes
    files in RUN/wandb, which `wandb sync` uploads.
    """

    def start(self, run: TrackedRun) -> None:
        settings = wandb.Settings(
            console="off",  # the logs of a run are files in its folder
            disable_git=True,
            disable_code=True,
            silent=True,
            finish_timeout=FINISH_S,
        )
        self.run = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT") or "ggcn",
            id=run.key,
            name=run.name,
            dir=run.folder,
            config=run.config,
            resume="allow",
            mode=None if _may_connect() else "offline",
            settings=settings,
        )
        self.run.config.update(run.config, allow_val_change=True)
        # an axis of its own: W&B's own step only grows, and a run that rolled back has some steps twice
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({"step": step, **metrics})

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({"step": step, name: wandb.Image(str(path))})

    def finish(self, outcome: str) -> None:
        if outcome == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code={"finished": 0, "stopped": 130}.get(outcome, 1))


def _may_connect() -> bool:
    """Whether the environment says how to connect, or this user has logged in."""
    if os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False):
        return True
    log.warning(
        "no W&B login was found; writing offline, to be uploaded with `wandb sync RUN/wandb/offline-run-*`"
    )
    return False
