"""Judges every step by its metrics: healthy, suspect or diverged.

The judgement is a pure function of plain values. A history goes in and comes out, and a checkpoint holds it as JSON,
so a resumed run judges like one that never stopped, and all ranks judge alike.

Signals that vary widely in healthy runs (energy gap, gradient norms) get a limit from their own running median. A
limit may be exceeded for a moment, as happens in healthy runs. What counts is by how much and for how long: the excess
over the limit in powers of ten, its severity, adds up from step to step and decays in steps within the limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite, log10
from statistics import median
from typing import Any

from ggcn.config.schema import GuardConfig

HEALTHY, SUSPECT, DIVERGED = "healthy", "suspect", "diverged"

GRADIENTS = ("energy_gradient_norm", "upsampler_gradient_norm")
WEIGHTS = ("energy_weight_norm", "upsampler_weight_norm")
STALLED_TOLERANCE = 0.05
"""chains whose relative displacement is this close to 1 only diffuse"""
SEVERITY_DECAY = 0.25
"""powers of ten by which the severity of a signal decreases at most in a step within the limit"""
GROWTH_WARMUP = 10
"""first steps, in which weights that start at 0 may grow without a limit"""


@dataclass(frozen=True)
class History:
    """What the judgement remembers of earlier steps; plain values, as in a checkpoint's meta.json."""

    past: dict[str, list[float]] = field(default_factory=dict)
    """latest values of each signal, oldest first, at most guard.window"""
    severity: dict[str, float] = field(default_factory=dict)
    """excess of each signal over its limit in powers of ten, summed over steps; only values above 0"""
    cooldown_left: int = 0
    """steps within all limits that remain before a checkpoint counts as healthy again"""
    stalled_steps: int = 0
    """steps in a row in which the chains of some grid only diffused"""


@dataclass(frozen=True)
class Verdict:
    """The judgement of a step."""

    health: str = HEALTHY
    reasons: list[str] = field(default_factory=list)

    def log_fields(self) -> dict[str, Any]:
        """The fields of its line in metrics.jsonl."""
        return {"health": self.health, **({"reasons": self.reasons} if self.reasons else {})}


def judge(guard: GuardConfig, history: History, values: dict[str, float]) -> tuple[History, Verdict]:
    """The history with the metrics `values` of a step added, and the verdict on this step.

    diverged: a value is not finite, or the severity of a signal has reached guard.severity. suspect: a signal has
    exceeded its limit within the last guard.cooldown_steps steps, or chains have only diffused for guard.window steps.
    """
    not_finite = [name for name, value in values.items() if not isfinite(value)]
    if not_finite:
        return history, Verdict(DIVERGED, [f"{name} is not finite" for name in not_finite])
    limits = list(_limits(guard, history.past, values))
    severity = {
        name: _add_severity(history.severity.get(name, 0.0), value, limit) for name, value, limit in limits
    }
    severity = {name: powers for name, powers in severity.items() if powers > 0}
    stalled_steps = history.stalled_steps + 1 if _is_stalled(values) else 0
    cooldown_left = guard.cooldown_steps if severity else max(history.cooldown_left - 1, 0)
    updated = History(_remember(guard, history.past, values), severity, cooldown_left, stalled_steps)
    exceeded = [f"{name} {value:.4g}, limit {limit:.4g}" for name, value, limit in limits if value > limit]
    if any(powers >= log10(guard.severity) for powers in severity.values()):
        return updated, Verdict(DIVERGED, exceeded)
    return updated, _suspicion(guard, updated, exceeded)


def health(history: History) -> str:
    """The health of a checkpoint saved now. Stalled chains do no damage, and do not count here."""
    return SUSPECT if history.cooldown_left else HEALTHY


def _limits(
    guard: GuardConfig, past: dict[str, list[float]], values: dict[str, float]
) -> Iterator[tuple[str, float, float]]:
    """(signal, value, limit) of each signal that has a limit."""
    for name, value in values.items():
        kind, recent = name.split("/")[0], past.get(name, [])
        if kind == "energy_gap":
            yield name, abs(value), max(guard.energy_gap, guard.max_ratio * _typical(recent))
        elif name in GRADIENTS:
            yield name, value, max(guard.grad_norm, guard.max_ratio * _typical(recent))
        elif name in WEIGHTS and len(recent) >= min(GROWTH_WARMUP, guard.window):
            yield name, value, guard.weight_growth * recent[-1]
        elif kind == "saturation":
            yield name, value - values.get(f"data_{name}", 0.0), guard.saturation


def _typical(recent: list[float]) -> float:
    return median(recent) if recent else inf


def _add_severity(powers: float, value: float, limit: float) -> float:
    """The severity of a signal after a step; a step within the limit decreases it by up to SEVERITY_DECAY."""
    ratio = value / limit if limit > 0 else 0.0
    return max(powers + max(log10(ratio) if ratio > 0 else -inf, -SEVERITY_DECAY), 0.0)


def _remember(
    guard: GuardConfig, past: dict[str, list[float]], values: dict[str, float]
) -> dict[str, list[float]]:
    watched = [name for name in values if name.startswith("energy_gap/") or name in (*GRADIENTS, *WEIGHTS)]
    return {name: [*past.get(name, []), abs(values[name])][-guard.window :] for name in watched}


def _is_stalled(values: dict[str, float]) -> bool:
    displacements = [value for name, value in values.items() if name.startswith("relative_displacement/")]
    return any(abs(displacement - 1) < STALLED_TOLERANCE for displacement in displacements)


def _suspicion(guard: GuardConfig, history: History, exceeded: list[str]) -> Verdict:
    reasons = list(exceeded)
    if history.cooldown_left and not exceeded:
        reasons.append(f"a limit was exceeded less than {guard.cooldown_steps} steps ago")
    if history.stalled_steps >= guard.window:
        reasons.append(f"chains have only diffused for {history.stalled_steps} steps")
    return Verdict(SUSPECT, reasons) if reasons else Verdict()
