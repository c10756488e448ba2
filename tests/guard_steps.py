"""Steps that are calm, for the guard to judge."""

from collections.abc import Iterable

from ggcn.config.schema import GuardConfig
from ggcn.training import guard
from ggcn.training.guard import History

GUARD = GuardConfig()
EXPLOSIONS_ONLY = GuardConfig(lost_steps=10_000)
CALM = {
    "energy_gap/16": 0.3,
    "energy_loss": 0.3,
    "energy_gradient_norm": 2.0,
    "energy_weight_norm": 5.0,
    "displacement/16": 0.05,
    "saturation/16": 0.01,
    "data_saturation/16": 0.0,
    "relative_displacement/16": 4.0,
}


def judged(
    changes: Iterable[dict[str, float]], history: History | None = None, config: GuardConfig = GUARD
) -> list[str]:
    """The health of steps that are calm except for `changes`."""
    history, healths = history or History(), []
    for change in changes:
        history, verdict = guard.judge(config, history, CALM | change)
        healths.append(verdict.health)
    return healths


def after(steps: int, change: dict[str, float] | None = None) -> History:
    """The history of that many calm steps, except for `change`."""
    history = History()
    for _ in range(steps):
        history, _ = guard.judge(GUARD, history, CALM | (change or {}))
    return history
