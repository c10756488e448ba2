"""The table and the figure of tools/stability.py."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from ggcn import files
from ggcn.errors import UserError
from tools.benchmarks.stability_runs import OBJECTIVES, RATES, SAMPLED_EVERY, SYSTEMS

Run = dict[str, Any]
COLOURS = dict(zip(OBJECTIVES, ("tab:red", "tab:blue", "tab:green", "black"), strict=True))


def chosen(runs: Sequence[Run], **values: Any) -> list[Run]:
    """The runs with these values."""
    return [run for run in runs if all(run[key] == value for key, value in values.items())]


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row per system and objective; of each learning rate the runs lost, and how well those learned that
    were not."""
    steps, seeds = runs[0]["steps"], len({run["seed"] for run in runs})
    rates = " | ".join(f"lost, lr {rate:g}" for rate in RATES)
    head = [
        f"{seeds} seeds of {steps} steps each. Responses: distance between those of samples and of data, over that "
        "of blank images; median over the last 50 steps and over the runs that were not lost.",
        "",
        f"| system | objective | {rates} | lost, all | "
        + " | ".join(f"responses, lr {r:g}" for r in RATES)
        + " |",
        "|" + " --- |" * (3 + 2 * len(RATES)),
    ]
    rows = [
        _row(system, objective, group)
        for system, objective in product(SYSTEMS, OBJECTIVES)
        if (group := chosen(runs, system=system, objective=objective))
    ]
    return "\n".join([*head, *rows]) + "\n"


def _row(system: str, objective: str, runs: Sequence[Run]) -> str:
    groups = [chosen(runs, lr=rate) for rate in RATES]
    cells = [_share(group) for group in [*groups, runs]] + [_responses(group) for group in groups]
    return f"| {system} | {objective} | " + " | ".join(cells) + " |"


def _share(runs: Sequence[Run]) -> str:
    return f"{sum(run['lost'] is not None for run in runs)} of {len(runs)}"


def _responses(runs: Sequence[Run]) -> str:
    held = [median(relative(run)[-50 // SAMPLED_EVERY :]) for run in runs if run["lost"] is None]
    return f"{median(held):.2f}" if held else "-"


def relative(run: Run) -> list[float]:
    """The samples' distance from the data, by responses, over that of blank images."""
    curves = run["curves"]
    return [own / blank for own, blank in zip(curves["response"], curves["blank"], strict=True)]


def share_lost(runs: Sequence[Run], steps: Sequence[int]) -> list[float]:
    """The share of runs that were lost at or before each of `steps`."""
    lost = [run["lost"] for run in runs]
    return [sum(at is not None and at <= step for at in lost) / len(lost) for step in steps]


def plot(runs: Sequence[Run], path: Path) -> None:
    """A column per system: above, the share of runs lost over steps; below, every run's responses. Raises UserError
    without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install -e '.[study]'") from None
    figure = Figure(figsize=(3.6 * len(SYSTEMS), 5.6), layout="constrained")
    panels = figure.subplots(2, len(SYSTEMS), sharex=True, sharey="row", squeeze=False)
    for (above, below), system in zip(panels.T, SYSTEMS, strict=True):
        above.set(title=system, ylim=(-0.03, 1.03))
        below.set(yscale="log", ylim=(0.05, 20), xlabel="step")
        below.axhline(1, color="gray", lw=0.7, ls=":")
        for objective in OBJECTIVES:
            _draw(above, below, chosen(runs, system=system, objective=objective), objective)
    panels[0][0].set(ylabel="share of runs lost")
    panels[1][0].set(ylabel="distance of samples from data\n(responses; 1: blank images)")
    panels[0][-1].legend(fontsize=8)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw(above: Any, below: Any, runs: Sequence[Run], objective: str) -> None:
    if not runs:
        return
    colour, steps = COLOURS[objective], range(SAMPLED_EVERY, runs[0]["steps"] + 1, SAMPLED_EVERY)
    above.plot(steps, share_lost(runs, steps), color=colour, label=objective, drawstyle="steps-post")
    for run in runs:
        values = relative(run)
        below.plot(list(steps)[: len(values)], values, color=colour, alpha=0.35, lw=0.8)
