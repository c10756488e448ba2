"""The table and the picture of tools/compare.py."""

from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ggcn import files, image_grid
from ggcn.evaluation.images import to_floats
from ggcn.evaluation.pca_gaussian import pca_gaussian
from tools.comparison.results import ROW, Results

Row = dict[str, Any]
HEAD = [
    "| method | steps | ms per step | FID | KID x1000 | precision | recall | coverage | copies | nearer "
    "| FID of each seed |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]
COLUMNS = (("kid", 1000, 1), ("precision", 1, 2), ("recall", 1, 2), ("coverage", 1, 2))
"""name, factor and digits of the distances after the FID"""


def write(results: Results) -> Path:
    """Writes table.md and pictures.png next to results.json; returns the table's path."""
    evaluator = results.evaluator
    baselines = {"real, half against half": evaluator.real_baseline()}
    baselines["PCA-50 Gaussian"] = evaluator.gaussian_baseline(results.args.count)
    lines = [line(name, [row], "") for name, row in baselines.items()]
    methods: dict[str, list[Row]] = {}
    for row in results.rows.values():
        methods.setdefault(row["method"], []).append(row)
    for name, rows in sorted(methods.items(), key=lambda pair: mean(row["fid"] for row in pair[1])):
        lines.append(line(name, rows, _cost(results, rows[0])))
    path = results.path.with_name("table.md")
    files.write_text(path, "\n".join([*HEAD, *lines]) + "\n")
    _picture(results, list(methods))
    return path


def line(name: str, rows: list[Row], cost: str) -> str:
    """A method's row of the table: mean and standard deviation over its seeds. cost: steps and ms per step."""
    cost = cost or " | "
    diverged = sum(row["fid"] == inf for row in rows)
    if diverged:
        return f"| {name} | {cost} | diverged, {diverged} of {len(rows)} | | | | | | | |"
    cells = [_cell([row["fid"] for row in rows], 1)]
    cells += [_cell([row[key] * factor for row in rows], digits) for key, factor, digits in COLUMNS]
    cells += _memorization([row["memorization"] for row in rows if "memorization" in row])
    cells.append(", ".join(f"{row['fid']:.1f}" for row in rows) if len(rows) > 1 else "")
    return f"| {name} | {cost} | " + " | ".join(cells) + " |"


def _memorization(parts: list[dict[str, Any]]) -> list[str]:
    """Share of copies, and the probability that a sample is nearer to the training set than a training image to the
    others; of features and of pixels the larger one."""
    if not parts:
        return ["", ""]
    worst = [
        [max(part[space][key] for space in ("features", "pixels")) for part in parts]
        for key in ("copies", "nearer_than_reference")
    ]
    return [f"{mean(values):.{digits}f}" for values, digits in zip(worst, (3, 2), strict=True)]


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _cost(results: Results, row: Row) -> str:
    name = row["run"].rsplit("-", 1)[0]
    cost = results.costs.get(name)
    return f"{row['steps']} | {1000 * cost:.0f}" if cost else "0 | "


def _picture(results: Results, methods: list[str]) -> None:
    train, args = results.evaluator.train.pixels, results.args
    rows = [("data", to_floats(train[:ROW]))]
    rows += [("PCA-50 Gaussian", to_floats(pca_gaussian(train, 50, ROW, 0)))]
    for name in methods:
        images = results.picture(name, 0)
        if images.exists():
            rows.append((name, to_floats(torch.load(images, weights_only=True))))
    title = f"{args.shards.name}, {args.seconds:.0f} s of one core each, seed 0, not selected"
    image_grid.save(image_grid.labelled_rows(title, rows, side=64), results.path.with_name("pictures.png"))
