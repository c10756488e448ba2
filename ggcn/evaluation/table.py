"""An evaluation as text: three small tables, with what their numbers depend on."""

from collections.abc import Iterable, Sequence
from typing import Any

from ggcn.evaluation.precision_recall import NEIGHBOURS

FRACTIONS = tuple(NEIGHBOURS)
HEADER = (
    *("", "FID", "KID x1000"),
    *(f"{name} (k={NEIGHBOURS[name]})" for name in FRACTIONS),
    *("images", "against", "settings"),
)


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` as text."""
    parts = [
        _distances(result),
        _comparison(result["distances"]),
        _memorization(result["memorization"]),
        _energy(result["energy"]),
    ]
    if result["data"]["trained_on_these"] is False:
        parts.append(
            "warning: the run was trained on other shards than these; memorization is not measured by them"
        )
    return "\n\n".join([_title(result), *parts])


def _title(result: dict[str, Any]) -> str:
    samples, chains = result["samples"], result["samples"]["chains"]
    steps = ", ".join(
        f"{c['grid']} px: {c['steps']} steps of {c['step_size']:g} at T {c['temperature']:g}" for c in chains
    )
    lines = [
        f"{samples['checkpoint']} (step {samples['step']}, {samples['weights']} weights, model {samples['model']})",
        f"{samples['count']} samples of seed {samples['seed']}, new chains from {samples['start']}; {steps}",
        *(
            f"{name}: {_counted(images)} of {images['folder']}"
            for name, images in result["data"]["sets"].items()
        ),
        f"features: {result['features']}",
    ]
    return "\n".join(lines)


def _counted(images: dict[str, Any]) -> str:
    """How many images of a set were used, and of how many."""
    without = f", {images['undecodable']} undecodable left out" if images.get("undecodable") else ""
    requested = images["count"] + images.get("undecodable", 0)
    return (
        f"all {images['count']} images"
        if requested == images["available"]
        else f"{images['count']} of {images['available']} images"
    ) + without


def _distances(result: dict[str, Any]) -> str:
    lines = [[name, *_cells(row), _settings(row["settings"])] for name, row in result["distances"].items()]
    return "\n".join([_aligned([HEADER, *lines]), *_too_few(result["distances"]["samples"])])


def _too_few(row: dict[str, Any]) -> list[str]:
    """A warning where there are fewer images than features: their covariance is singular."""
    least = min(row["count"], row["against"])
    if least >= row["width"]:
        return []
    return [
        f"warning: FID is too high with {least} images, fewer than the {row['width']} features; "
        "compare it only with values of equal counts"
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    shares = [f"{row[name]:.3f}" for name in FRACTIONS]
    kid = f"{1000 * row['kid']:.2f} +- {1000 * row['kid_std']:.2f}"
    return [f"{row['fid']:.2f}", kid, *shares, str(row["count"]), str(row["against"])]


def _settings(settings: dict[str, Any]) -> str:
    parts = [f"seed {settings['seed']}"]
    if "chain_step" in settings:
        grid = settings["chains"][-1]
        chain = f"chain step {settings['chain_step']} of {grid['steps']} at {grid['grid']} px"
        parts += [f"step {settings['step']}", chain, f"T {grid['temperature']:g}"]
    return ", ".join(parts)


def _comparison(rows: dict[str, dict[str, Any]]) -> str:
    baseline = next(name for name in rows if "Gaussian" in name)
    ratio = rows["samples"]["fid"] / rows[baseline]["fid"]
    change = rows["samples"]["fid"] - rows["chain starts"]["fid"]
    return f"FID is {ratio:.2f} x that of the {baseline}; the finest chain changed it by {change:+.2f}"


def _memorization(values: dict[str, Any]) -> str:
    lines: list[Sequence[str]] = [
        (
            "nearest in training",
            "samples",
            "reference",
            "P(nearer)",
            "in its 1 %",
            "copies",
            "its copies",
        )
    ]
    for name in ("features", "pixels"):
        part = values[name]
        near, far = (f"{part[key]:.4g}" for key in ("median", "reference_median"))
        shares = [
            part[key] for key in ("nearer_than_reference", "nearest_percent", "copies", "reference_copies")
        ]
        lines.append((f"by {name}", near, far, *(f"{share:.1%}" for share in shares)))
    verdict = "MEMORIZED: samples are copies" if values["memorized"] else "not memorized"
    return f"{_aligned(lines)}\nreference: {values['reference_count']} {values['reference']}; {verdict}"


def _energy(values: dict[str, Any]) -> str:
    header = (
        f"energy at {values['grid']} px",
        "mean",
        "std",
        "1 %",
        "median",
        "99 %",
        "images",
        "AUROC",
        "against",
    )
    lines: list[Sequence[str]] = [header]
    for name, part in values["sets"].items():
        numbers = [part["mean"], part["std"], *(part["quantiles"][q] for q in ("0.01", "0.5", "0.99"))]
        auroc = (f"{part['auroc']:.3f}", part["auroc_against"]) if "auroc" in part else ("", "")
        lines.append((name, *(f"{n:.4g}" for n in numbers), str(part["count"]), *auroc))
    return f"{_aligned(lines)}\nAUROC: probability that an image's energy is above that of one of the set in `against`"


def _aligned(lines: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, right-aligned, but for the first, `settings` and `against`."""
    rows = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, *(number for number, title in enumerate(rows[0]) if title in ("settings", "against"))}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
