"""The status of a run as a record, for `status --json` and for tables: the keys are an interface."""

import json
from math import isfinite
from typing import Any

from ggcn.json_lines import number
from ggcn.run import event_log, history
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob, Status, read

SCHEMA = 1
"""the version of the records: it grows when a key changes its meaning or goes; new keys may come without"""
STATES = ("running", "waiting", "complete", "finished", "stopped", "gave up", "killed", "new")


def record(run: RunDir, jobs: dict[str, QueuedJob] | None) -> dict[str, Any]:
    """The record of a run; of one that cannot be read its name, its path, the state "unreadable" and why."""
    named = {"schema": SCHEMA, "name": run.path.name, "path": str(run.path)}
    try:
        return named | _finite(of_status(read(run, jobs)))
    except Exception as failure:  # whatever the files of this run contain
        detail = f"{type(failure).__name__}: {failure}"
        return named | {"state": "unreadable", "detail": detail, "live": False}


def of_status(status: Status) -> dict[str, Any]:
    """What is known of a run, without its name; docs/runs.md describes the keys."""
    state = next((each for each in STATES if status.state.startswith(each)), "unknown")
    start = event_log.last(status.events, "start") or {}
    beats = [each["time"] for each in status.heartbeats if each["time"] is not None]
    health = status.last_metrics.get("health")
    return {
        "state": state,
        "detail": status.state,
        "live": status.live,
        "job": status.job,
        "step": status.step,
        "total_steps": status.total,
        **_rates(status),
        "health": health if isinstance(health, str) else None,
        "restarts": len(event_log.restarts(status.events)),
        "checkpoint_step": event_log.saved_step(status.run) or None,
        "device": start.get("device"),
        "ranks": len(status.heartbeats),
        "heartbeat": max(beats, default=None),
        **_scores(status.run),
        "metrics": status.last_metrics,
        "config_error": status.config_error or None,
    }


def _rates(status: Status) -> dict[str, Any]:
    seconds, config = status.step_s, status.config
    if not seconds or not config:
        return {"step_seconds": seconds, "images_per_second": None, "seconds_left": None}
    left = max(config.train.steps - status.step, 0) * seconds
    rate = config.train.batch / seconds
    return {
        "step_seconds": seconds,
        "images_per_second": rate,
        "seconds_left": left if status.live else None,
    }


def _scores(run: RunDir) -> dict[str, Any]:
    """The score that the run is judged by, and its course."""
    found = history.scores(run)
    return {
        "score": found.name or None,
        "score_last": found.last,
        "score_best": found.best[1] if found.best else None,
        "score_best_step": found.best[0] if found.best else None,
        "scores": [list(point) for point in found.points],
    }


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and not isfinite(number(value)):
        return None
    return value


def text(records: dict[str, Any] | list[dict[str, Any]]) -> str:
    """JSON in one line; whatever reads it needs no UTF-8."""
    return json.dumps(records, allow_nan=False, default=str)
