"""Judges every step by its metrics: healthy, suspect or diverged.

The judgement is a pure function of plain values. A history goes in and comes out, and a checkpoint holds it as JSON,
so a resumed run judges like one that never stopped, and all ranks judge alike.

A run diverges in one of two ways. Each is judged by how far and for how long, because healthy runs are restless:
- Explosion: a signal exceeds a wide limit. The excess in powers of ten, its severity, adds up from step to step and
  decays in steps within the limit.
- Loss: signals leave what is usual in this run, by far less than in an explosion, and do not return. What is usual is
  an average over the run's own healthy steps. It stands still while a signal is outside, so it cannot follow a loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import exp, inf, isfinite, log, log10
from typing import Any

from ggcn.config.schema import GuardConfig

HEALTHY, SUSPECT, DIVERGED = "healthy", "suspect", "diverged"

MARGINS = {
    "energy_gap": (9.0, 2.0),
    "displacement": (2.0, 0.2),
    "saturation": (4.0, 0.05),
    "unexplained": (0.4, 0.2),
    "energy_gradient_norm": (19.0, 20.0),
    "upsampler_gradient_norm": (19.0, 20.0),
}
"""how far each signal may lie above its usual value: a multiple of this value, or an amount where that is more"""
GRADIENTS = ("energy_gradient_norm", "upsampler_gradient_norm")
WEIGHTS = ("energy_weight_norm", "upsampler_weight_norm")
STALLED_TOLERANCE = 0.05
"""chains whose relative displacement is this close to 1 only diffuse"""
SEVERITY_DECAY = 0.25
"""powers of ten by which the severity of a signal decreases at most in a step within the limit"""
USUAL_WARMUP = 20
"""observations of a signal before it is compared with what is usual"""
YOUTH = 100
"""step at which a margin is still twice as wide as later, and the wider the earlier, for early learning moves fast"""
GROWTH_WARMUP = 10
"""first steps, in which weights that start at 0 may grow without a limit"""

Excess = tuple[str, float, float]
"""signal, value, limit"""


@dataclass(frozen=True)
class History:
    """What the judgement remembers of earlier steps; plain values, as in a checkpoint's meta.json."""

    steps: int = 0
    """steps judged"""
    log_usual: dict[str, float] = field(default_factory=dict)
    """average logarithm of each signal over healthy steps; a few huge values hardly change it"""
    counts: dict[str, int] = field(default_factory=dict)
    """observations averaged, at most guard.memory"""
    seen: dict[str, int] = field(default_factory=dict)
    """step of each signal's last observation; some are observed only in steps with chains"""
    weights: dict[str, float] = field(default_factory=dict)
    """latest norms of the weights"""
    severity: dict[str, float] = field(default_factory=dict)
    """excess of each signal over its limit in powers of ten, summed over steps; only values above 0"""
    outside: dict[str, float] = field(default_factory=dict)
    """steps that each signal has been far above what is usual, less the steps that it has not; only values above 0"""
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

    diverged: a value is not finite, the severity of a signal has reached guard.severity, or two signals have been
    outside what is usual for guard.lost_steps (one alone, for half as long again). suspect: a signal has exceeded a
    limit within the last guard.cooldown_steps steps, or chains have only diffused for guard.window steps.
    """
    not_finite = [name for name, value in values.items() if not isfinite(value)]
    if not_finite:
        return history, Verdict(DIVERGED, [f"{name} is not finite" for name in not_finite])
    signals = _signals(values)
    limits = list(_limits(guard, history, signals, values))
    severity = {
        name: _add_severity(history.severity.get(name, 0.0), value, limit) for name, value, limit in limits
    }
    severity = {name: powers for name, powers in severity.items() if powers > 0}
    unusual = {name for name, value, limit in _usual_limits(history, signals) if value > limit}
    updated = _update(guard, history, signals, values, severity, unusual)
    reasons = _reasons(history, signals, limits, unusual)
    exploded = any(powers >= log10(guard.severity) for powers in severity.values())
    if exploded or _is_lost(guard, updated):
        return updated, Verdict(DIVERGED, reasons)
    return updated, _suspicion(guard, updated, reasons)


def health(history: History) -> str:
    """The health of a checkpoint saved now. Stalled chains do no damage, and do not count here."""
    return SUSPECT if history.cooldown_left else HEALTHY


def forget_usual(history: History) -> History:
    """The history for a run that goes on with another config, in which other values will be usual."""
    return replace(history, steps=0, log_usual={}, counts={}, seen={}, outside={})


def _signals(values: dict[str, float]) -> dict[str, float]:
    """What is compared with its past, larger being worse. unexplained is 1 - R^2 of a batch's transport regression."""
    signals = {}
    for name, value in values.items():
        kind, _, grid = name.partition("/")
        if kind == "transport_error" and (target := values.get(f"transport_target/{grid}", 0.0)) > 0:
            signals[f"unexplained/{grid}"] = value / target
        elif kind == "saturation":
            signals[name] = max(value - values.get(f"data_{name}", 0.0), 0.0)
        elif kind in MARGINS:
            signals[name] = abs(value)
    return signals


def _limits(
    guard: GuardConfig, history: History, signals: dict[str, float], values: dict[str, float]
) -> Iterator[Excess]:
    """The limits of an explosion."""
    floors = {"energy_gap": guard.energy_gap} | dict.fromkeys(GRADIENTS, guard.grad_norm)
    for name, value in signals.items():
        kind = name.split("/")[0]
        if kind in floors:
            yield name, value, max(floors[kind], guard.max_ratio * _usual(history, name))
        elif kind == "saturation":
            yield name, value, guard.saturation
    for name in WEIGHTS:
        if history.steps >= GROWTH_WARMUP and name in values and name in history.weights:
            yield name, values[name], guard.weight_growth * history.weights[name]


def _usual_limits(history: History, signals: dict[str, float]) -> Iterator[Excess]:
    """The limits of what is usual in this run."""
    youth = 1 + YOUTH / max(history.steps, 1)
    for name, value in signals.items():
        if history.counts.get(name, 0) >= USUAL_WARMUP:
            usual, (multiple, amount) = _usual(history, name), MARGINS[name.split("/")[0]]
            yield name, value, usual + youth * max(multiple * usual, amount)


def _usual(history: History, name: str) -> float:
    """What is usual of a signal; inf before its first observation."""
    return exp(history.log_usual[name]) if name in history.log_usual else inf


def _add_severity(powers: float, value: float, limit: float) -> float:
    """The severity of a signal after a step; a step within the limit decreases it by up to SEVERITY_DECAY."""
    ratio = value / limit if limit > 0 else 0.0
    return max(powers + max(log10(ratio) if ratio > 0 else -inf, -SEVERITY_DECAY), 0.0)


def _update(
    guard: GuardConfig,
    history: History,
    signals: dict[str, float],
    values: dict[str, float],
    severity: dict[str, float],
    unusual: set[str],
) -> History:
    outside = _outside(guard, history, signals, unusual)
    log_usual, counts = dict(history.log_usual), dict(history.counts)
    if not severity and not outside:
        for name, value in signals.items():
            amount = MARGINS[name.split("/")[0]][1]
            counts[name] = min(counts.get(name, 0) + 1, guard.memory)
            former = log_usual.get(name, 0.0)
            log_usual[name] = former + (log(max(value, amount / 10)) - former) / counts[name]
    return History(
        steps=history.steps + 1,
        log_usual=log_usual,
        counts=counts,
        seen=history.seen | dict.fromkeys(signals, history.steps + 1),
        weights=history.weights | {name: values[name] for name in WEIGHTS if name in values},
        severity=severity,
        outside=outside,
        cooldown_left=guard.cooldown_steps if severity or unusual else max(history.cooldown_left - 1, 0),
        stalled_steps=history.stalled_steps + 1 if _is_stalled(values) else 0,
    )


def _outside(
    guard: GuardConfig, history: History, signals: dict[str, float], unusual: set[str]
) -> dict[str, float]:
    """An observation stands for the steps since the one before, but one alone never for a loss."""
    outside = dict(history.outside)
    for name in signals:
        steps = history.steps + 1 - history.seen.get(name, history.steps)
        change = min(steps, guard.lost_steps / 2) if name in unusual else -steps
        outside[name] = outside.get(name, 0) + change
    return {name: steps for name, steps in outside.items() if steps > 0}


def _is_lost(guard: GuardConfig, history: History) -> bool:
    *_, second, first = 0.0, 0.0, *sorted(history.outside.values())
    return first + second >= 2 * guard.lost_steps or first >= 1.5 * guard.lost_steps


def _reasons(
    history: History, signals: dict[str, float], limits: list[Excess], unusual: set[str]
) -> list[str]:
    """A sentence part for each signal that is unusual or over its limit."""
    reasons = {
        name: f"{name} {signals[name]:.4g}, usually {_usual(history, name):.4g}" for name in sorted(unusual)
    }
    exceeded = {
        name: f"{name} {value:.4g}, limit {limit:.4g}" for name, value, limit in limits if value > limit
    }
    return list((reasons | exceeded).values())


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
