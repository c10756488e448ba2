"""Judges every step by its numbers, and keeps the record of what went wrong.

The judgement is arithmetic on plain values: a history goes in and comes out, a checkpoint holds it as JSON, so a
resumed run judges as one that never stopped, and all ranks judge alike.

Signals that swing widely in good health (energy gap, gradient norms) get a limit from their own running median; a
limit may be passed for a moment, since healthy runs do. What counts is how far and how long: the excess over the
limit, in powers of ten, adds up from step to step and leaks away in quiet ones.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import inf, isfinite, log10
from pathlib import Path
from statistics import median
from typing import Any

from ggcn import files
from ggcn.config.compose import load
from ggcn.config.schema import GuardConfig
from ggcn.errors import UserError
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir, identity

HEALTHY, SUSPECT, DIVERGED = "healthy", "suspect", "diverged"

GRADIENTS = ("energy_gradient_norm", "upsampler_gradient_norm")
WEIGHTS = ("energy_weight_norm", "upsampler_weight_norm")
STILL = 0.05
"""chains whose relative displacement is this near to 1 do nothing but diffuse"""
LEAK = 0.25
"""powers of ten of excess that a quiet step forgives"""
YOUNG = 10
"""steps in which weights that begin at 0 may grow as they like"""


@dataclass(frozen=True)
class History:
    """What the judgement remembers; plain values, as in a checkpoint's meta.json."""

    past: dict[str, list[float]] = field(default_factory=dict)
    """last values of each signal, oldest first, at most guard.window"""
    severity: dict[str, float] = field(default_factory=dict)
    """powers of ten by which each signal has passed its limit, summed over steps; those above 0"""
    cooldown_left: int = 0
    """quiet steps still wanted before a checkpoint counts as healthy again"""
    stalled_steps: int = 0
    """steps in a row in which the chains of some grid only diffused"""


@dataclass(frozen=True)
class Verdict:
    """What a step's numbers say of the run."""

    health: str = HEALTHY
    reasons: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """What metrics.jsonl says of it."""
        return {"health": self.health, **({"reasons": self.reasons} if self.reasons else {})}


def judge(guard: GuardConfig, history: History, values: dict[str, float]) -> tuple[History, Verdict]:
    """The history with a step's `values` (Journal's names) added, and the verdict.

    diverged: a value is not finite, or the excess of a signal has reached guard.severity. suspect: a signal has
    passed its limit within the last guard.cooldown_steps steps, or chains have stood still for guard.window.
    """
    broken = [name for name, value in values.items() if not isfinite(value)]
    if broken:
        return history, Verdict(DIVERGED, [f"{name} is not finite" for name in broken])
    limits = list(_limits(guard, history.past, values))
    severity = {name: _sum(history.severity.get(name, 0.0), value, limit) for name, value, limit in limits}
    severity = {name: powers for name, powers in severity.items() if powers > 0}
    stalled_steps = history.stalled_steps + 1 if _stand_still(values) else 0
    cooldown_left = guard.cooldown_steps if severity else max(history.cooldown_left - 1, 0)
    after = History(_remember(guard, history.past, values), severity, cooldown_left, stalled_steps)
    passed = [f"{name} {value:.4g}, limit {limit:.4g}" for name, value, limit in limits if value > limit]
    if any(powers >= log10(guard.severity) for powers in severity.values()):
        return after, Verdict(DIVERGED, passed)
    return after, _suspicion(guard, after, passed)


def health(history: History) -> str:
    """Of a checkpoint saved now. Chains that stand still are no damage, and do not count here."""
    return SUSPECT if history.cooldown_left else HEALTHY


def _limits(
    guard: GuardConfig, past: dict[str, list[float]], values: dict[str, float]
) -> Iterator[tuple[str, float, float]]:
    """(signal, value, limit) of each signal that has one."""
    for name, value in values.items():
        kind, before = name.split("/")[0], past.get(name, [])
        if kind == "energy_gap":
            yield name, abs(value), max(guard.energy_gap, guard.max_ratio * _typical(before))
        elif name in GRADIENTS:
            yield name, value, max(guard.grad_norm, guard.max_ratio * _typical(before))
        elif name in WEIGHTS and len(before) >= min(YOUNG, guard.window):
            yield name, value, guard.weight_growth * before[-1]
        elif kind == "saturation":
            yield name, value - values.get(f"data_{name}", 0.0), guard.saturation


def _typical(before: list[float]) -> float:
    return median(before) if before else inf


def _sum(powers: float, value: float, limit: float) -> float:
    """The excess after a step; a quiet step takes LEAK off."""
    ratio = value / limit if limit > 0 else 0.0
    return max(powers + max(log10(ratio) if ratio > 0 else -inf, -LEAK), 0.0)


def _remember(
    guard: GuardConfig, past: dict[str, list[float]], values: dict[str, float]
) -> dict[str, list[float]]:
    watched = [name for name in values if name.startswith("energy_gap/") or name in (*GRADIENTS, *WEIGHTS)]
    return {name: [*past.get(name, []), abs(values[name])][-guard.window :] for name in watched}


def _stand_still(values: dict[str, float]) -> bool:
    moves = [value for name, value in values.items() if name.startswith("relative_displacement/")]
    return any(abs(move - 1) < STILL for move in moves)


def _suspicion(guard: GuardConfig, history: History, passed: list[str]) -> Verdict:
    reasons = list(passed)
    if history.cooldown_left and not passed:
        reasons.append(f"a limit was passed less than {guard.cooldown_steps} steps ago")
    if history.stalled_steps >= guard.window:
        reasons.append(f"chains have only diffused for {history.stalled_steps} steps")
    return Verdict(SUSPECT, reasons) if reasons else Verdict()


Incident = dict[str, Any]
"""step, attempt, reasons, signals, rolled_back_to (0: the initial weights), gave_up, time; healthy: the newest step
with a healthy checkpoint just then; config: hash of what the run computes"""


def incidents(run: RunDir) -> list[Incident]:
    """All that ever went wrong in a run, oldest first."""
    path = run.incidents
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def note(
    guard: GuardConfig, run: RunDir, step: int, attempt: int, verdict: Verdict, values: dict[str, float]
) -> Incident:
    """Puts on record that `attempt` diverged at `step`, and what follows: where the run goes on, or that it gives up.

    On return the record is on the disk, so that a process killed from now on rolls back when it is started again.
    """
    former = incidents(run)
    incident = {
        "step": step,
        "attempt": attempt,
        "reasons": verdict.reasons,
        "rolled_back_to": rollback_target(run.checkpoints, former),
        "healthy": (healthy := next(_healthy(run.checkpoints), 0)),
        "config": (config := _identity(run)),
        "gave_up": len(counted(guard, former, healthy, config)) >= guard.max_rollbacks,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "signals": {name: value if isfinite(value) else str(value) for name, value in values.items()},
    }
    files.write_text(run.incidents, "".join(json.dumps(entry) + "\n" for entry in [*former, incident]))
    return incident


def rollback_target(root: Path, former: list[Incident]) -> int:
    """The step of the last healthy and whole checkpoint in `root`; 0, the initial weights, where there is none.

    If the last roll-back went there and was in vain, the one before it, as long as there is one.
    """
    found = _healthy(root)
    last = next(found, 0)
    in_vain = bool(former) and former[-1]["rolled_back_to"] == last
    return next(found, last) if in_vain else last


def _healthy(root: Path) -> Iterator[int]:
    """Steps with a healthy and whole checkpoint, newest first."""
    folders = ((step, root / checkpoint.name(step)) for step in checkpoint.steps(root))
    return (step for step, folder in folders if checkpoint.healthy(folder) and not checkpoint.faults(folder))


def counted(guard: GuardConfig, former: list[Incident], healthy: int, config: str) -> list[Incident]:
    """The roll-backs that count towards guard.max_rollbacks, when the newest healthy checkpoint is at step `healthy`.

    A divergence is overcome, and counts no more, once the run has a healthy checkpoint guard.window steps beyond it.
    What came before another config (--force) does not count either. It is arithmetic on the record and on what lies
    in checkpoints/, so a run that was killed counts as one that was not.
    """
    counts: list[Incident] = []
    for past in reversed(former):
        if past.get("config", config) != config:
            break
        if not past["gave_up"] and healthy < past["step"] + guard.window:
            counts.append(past)
        healthy = max(healthy, past.get("healthy", 0))
    return counts[::-1]


def _identity(run: RunDir) -> str:
    """A hash of what the run computes; empty where its config is not frozen."""
    if not run.config.exists():
        return ""
    return hashlib.sha256(json.dumps(identity(load(run.config)), sort_keys=True).encode()).hexdigest()[:16]


def settled(run: RunDir, keep_every: int = 0) -> int:
    """Puts the checkpoints that the last roll-back left behind out of the way, so that the newest is where to go on;
    returns the attempt that follows, 0 when nothing ever diverged. One process calls it.

    The best one and multiples of `keep_every` are renamed to left-step_N, the others removed.
    """
    former, root = incidents(run), run.checkpoints
    if not former:
        return 0
    left, last = former[-1]["attempt"], former[-1]["rolled_back_to"]
    for step in [step for step in checkpoint.steps(root) if step > last]:
        folder = root / checkpoint.name(step)
        liked = (checkpoint.best(root) or {}).get("checkpoint") == folder.name
        if _attempt(folder) > left:
            continue
        if liked or (keep_every and step % keep_every == 0):
            checkpoint.leave(folder)
        else:
            checkpoint.discard(folder)
    return left + 1


def _attempt(folder: Path) -> float:
    """Which attempt saved a checkpoint. Who cannot say is no business of the guard's, but a damaged one."""
    try:
        return int(checkpoint.meta(folder).get("attempt", 0))
    except (OSError, ValueError):
        return inf


def summary(incident: Incident) -> tuple[int, str, int]:
    """When, why, and back to where."""
    return incident["step"], "; ".join(incident["reasons"][:3]), incident["rolled_back_to"]


def give_up_error(run: RunDir, incident: Incident, guard: GuardConfig | None = None) -> UserError:
    """The sentence that ends a run which diverges again and again, `incident` being the last on its record."""
    guard = guard or GuardConfig()
    step, why, back = summary(incident)
    former = incidents(run)[:-1]
    count = len(counted(guard, former, incident["healthy"], incident["config"]))
    left = (
        f"{run.checkpoints / checkpoint.name(back)} is healthy and whole"
        if back
        else "no checkpoint is healthy"
    )
    return UserError(
        f"training diverged at step {step} ({why}) after {count} roll-backs; {left}; "
        "lower train.energy.lr or model.chain.step_size and go on with --force"
    )
