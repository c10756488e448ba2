"""The record of divergences, and rollbacks to the last healthy checkpoint.

Everything is computed from incidents.jsonl and the folder of checkpoints, so a run that was killed at any moment
continues like one that was not.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from math import inf, isfinite
from pathlib import Path
from typing import Any

from ggcn import files
from ggcn.config.compose import load
from ggcn.config.schema import Config, GuardConfig
from ggcn.errors import UserError
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir, identity
from ggcn.training.guard import Verdict

Incident = dict[str, Any]
"""step, attempt, reasons, signals, rolled_back_to (0: the initial weights), gave_up, time; healthy: the newest step
with a healthy checkpoint at that time; config: a hash of the settings that determine what the run computes;
empty where its config is not frozen"""


def read_incidents(run: RunDir) -> list[Incident]:
    """All divergences of a run, oldest first."""
    path = run.incidents
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def record_incident(
    guard: GuardConfig, run: RunDir, step: int, attempt: int, verdict: Verdict, values: dict[str, float]
) -> Incident:
    """Records that `attempt` diverged at `step`, and what follows: the step to roll back to, or that the run gives up.

    On return the record is on disk, so that a process killed from now on rolls back when it is started again.
    """
    former = read_incidents(run)
    incident = {
        "step": step,
        "attempt": attempt,
        "reasons": verdict.reasons,
        "rolled_back_to": rollback_target(run.checkpoints, former),
        "healthy": (healthy := next(_healthy(run.checkpoints), 0)),
        "config": (config := config_hash(load(run.config)) if run.config.exists() else ""),
        "gave_up": len(counted_rollbacks(guard, former, healthy, config)) >= guard.max_rollbacks,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "signals": {name: value if isfinite(value) else str(value) for name, value in values.items()},
    }
    files.write_text(run.incidents, "".join(json.dumps(entry) + "\n" for entry in [*former, incident]))
    return incident


def rollback_target(root: Path, former: list[Incident]) -> int:
    """The step of the newest healthy and valid checkpoint in `root`; 0, the initial weights, where there is none.

    If the last rollback went there and the run diverged again, the one before it, as long as there is one.
    """
    candidates = _healthy(root)
    newest = next(candidates, 0)
    tried = bool(former) and former[-1]["rolled_back_to"] == newest
    return next(candidates, newest) if tried else newest


def _healthy(root: Path) -> Iterator[int]:
    """Steps with a healthy and valid checkpoint, newest first."""
    folders = ((step, root / checkpoint.name(step)) for step in checkpoint.steps(root))
    return (step for step, folder in folders if checkpoint.healthy(folder) and not checkpoint.faults(folder))


def counted_rollbacks(
    guard: GuardConfig, former: list[Incident], healthy: int, config: str
) -> list[Incident]:
    """The rollbacks that count towards guard.max_rollbacks, when the newest healthy checkpoint is at step `healthy`.

    A divergence no longer counts once the run has a healthy checkpoint guard.window steps after it. Nor does one of
    another config, before a change with --force.
    """
    counted: list[Incident] = []
    for incident in reversed(former):
        if incident.get("config", config) != config:
            break
        if not incident["gave_up"] and healthy < incident["step"] + guard.window:
            counted.append(incident)
        healthy = max(healthy, incident.get("healthy", 0))
    return counted[::-1]


def config_hash(config: Config) -> str:
    """A hash of the settings that determine what a run computes."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def apply_rollback(run: RunDir, keep_every: int = 0) -> int:
    """Moves the checkpoints after the step of the last rollback away, so that the newest is the one to resume from;
    returns the number of the attempt that follows, 0 when the run never diverged. One process calls it.

    The best one and multiples of `keep_every` are renamed to left-step_N, the others removed.
    """
    former, root = read_incidents(run), run.checkpoints
    if not former:
        return 0
    failed, target = former[-1]["attempt"], former[-1]["rolled_back_to"]
    for step in [step for step in checkpoint.steps(root) if step > target]:
        folder = root / checkpoint.name(step)
        is_best = (checkpoint.best(root) or {}).get("checkpoint") == folder.name
        if _attempt(folder) > failed:
            continue
        if is_best or (keep_every and step % keep_every == 0):
            checkpoint.archive(folder)
        else:
            checkpoint.discard(folder)
    return failed + 1


def _attempt(folder: Path) -> float:
    """The attempt that saved a checkpoint; inf where it is damaged, which is not for a rollback to handle."""
    try:
        return int(checkpoint.meta(folder).get("attempt", 0))
    except (OSError, ValueError):
        return inf


def summary(incident: Incident) -> tuple[int, str, int]:
    """The step, the reasons, and the step of the rollback."""
    return incident["step"], "; ".join(incident["reasons"][:3]), incident["rolled_back_to"]


def give_up_error(run: RunDir, incident: Incident, guard: GuardConfig | None = None) -> UserError:
    """The error that ends a run which diverges again and again, `incident` being the last one recorded."""
    guard = guard or GuardConfig()
    step, reasons, target = summary(incident)
    former = read_incidents(run)[:-1]
    count = len(counted_rollbacks(guard, former, incident["healthy"], incident["config"]))
    newest = run.checkpoints / checkpoint.name(target)
    state = f"{newest} is healthy and valid" if target else "no checkpoint is healthy"
    return UserError(
        f"training diverged at step {step} ({reasons}) after {count} rollbacks; {state}; "
        "lower train.energy.lr or model.chain.step_size and continue with --force"
    )
