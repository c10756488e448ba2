"""An evaluation for the eye: three small tables, with what their numbers depend on."""

from collections.abc import Iterable, Sequence
from typing import Any

from ggcn.evaluation.metrics import NEIGHBOURS

SHARES = tuple(NEIGHBOURS)
HEADS = (
    *("", "FID", "KID x1000"),
    *(f"{name} (k={NEIGHBOURS[name]})" for name in SHARES),
    *("pictures", "against", "how"),
)


def table(found: dict[str, Any]) -> str:
    """The result of `evaluate` as text."""
    parts = [
        _distances(found),
        _verdict(found["rows"]),
        _memory(found["memorisation"]),
        _energy(found["energy"]),
    ]
    if found["data"]["trained_on_these"] is False:
        parts.append(
            "warning: the run was trained on other shards than these; memorisation says nothing here"
        )
    return "\n\n".join([_title(found), *parts])


def _title(found: dict[str, Any]) -> str:
    told, chains = found["samples"], found["samples"]["chains"]
    steps = ", ".join(
        f"{c['grid']} px: {c['steps']} steps of {c['step_size']:g} at T {c['temperature']:g}" for c in chains
    )
    lines = [
        f"{told['checkpoint']} (step {told['step']}, {told['weights']} weights, model {told['model']})",
        f"{told['count']} samples of seed {told['seed']}, fresh chains from {told['start']}; {steps}",
        *(f"{name}: {_counted(of)} of {of['folder']}" for name, of in found["data"]["sets"].items()),
        f"features: {found['features']}",
    ]
    return "\n".join(lines)


def _counted(of: dict[str, Any]) -> str:
    """How many pictures of a set were used, and of how many."""
    without = f", {of['undecodable']} undecodable left out" if of.get("undecodable") else ""
    asked = of["count"] + of.get("undecodable", 0)
    return (
        f"all {of['count']} pictures"
        if asked == of["available"]
        else f"{of['count']} of {of['available']} pictures"
    ) + without


def _distances(found: dict[str, Any]) -> str:
    lines = [[name, *_cells(row), _how(row["settings"])] for name, row in found["rows"].items()]
    return "\n".join([_aligned([HEADS, *lines]), *_too_few(found["rows"]["samples"])])


def _too_few(row: dict[str, Any]) -> list[str]:
    """A warning where there are fewer pictures than features: then no covariance can be known."""
    least = min(row["count"], row["against"])
    if least >= row["width"]:
        return []
    return [
        f"warning: FID is too high with {least} pictures, fewer than the {row['width']} features; "
        "compare it with rows of equal counts only"
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    shares = [f"{row[name]:.3f}" for name in SHARES]
    kid = f"{1000 * row['kid']:.2f} +- {1000 * row['kid_sd']:.2f}"
    return [f"{row['fid']:.2f}", kid, *shares, str(row["count"]), str(row["against"])]


def _how(settings: dict[str, Any]) -> str:
    told = [f"seed {settings['seed']}"]
    if "chain_step" in settings:
        grid = settings["chains"][-1]
        chain = f"chain step {settings['chain_step']} of {grid['steps']} at {grid['grid']} px"
        told += [f"step {settings['step']}", chain, f"T {grid['temperature']:g}"]
    return ", ".join(told)


def _verdict(rows: dict[str, dict[str, Any]]) -> str:
    beaten = next(name for name in rows if "Gaussian" in name)
    ratio = rows["samples"]["fid"] / rows[beaten]["fid"]
    moved = rows["samples"]["fid"] - rows["chain starts"]["fid"]
    return f"FID is {ratio:.2f} x that of the {beaten}; the finest chain changed it by {moved:+.2f}"


def _memory(told: dict[str, Any]) -> str:
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
        part = told[name]
        near, far = (f"{part[key]:.4g}" for key in ("median", "reference_median"))
        shares = [
            part[key] for key in ("nearer_than_reference", "nearest_percent", "copies", "reference_copies")
        ]
        lines.append((f"by {name}", near, far, *(f"{share:.1%}" for share in shares)))
    verdict = "MEMORISED: samples are copies" if told["memorised"] else "not memorised"
    return f"{_aligned(lines)}\nreference: {told['reference_count']} {told['reference']}; {verdict}"


def _energy(told: dict[str, Any]) -> str:
    heads = (
        f"energy at {told['grid']} px",
        "mean",
        "sd",
        "1 %",
        "median",
        "99 %",
        "pictures",
        "AUROC",
        "against",
    )
    lines: list[Sequence[str]] = [heads]
    for name, of in told["sets"].items():
        numbers = [of["mean"], of["sd"], *(of["quantiles"][q] for q in ("0.01", "0.5", "0.99"))]
        score = (f"{of['auroc']:.3f}", of["auroc_against"]) if "auroc" in of else ("", "")
        lines.append((name, *(f"{n:.4g}" for n in numbers), str(of["count"]), *score))
    return f"{_aligned(lines)}\nAUROC: probability that a picture's energy is above that of one it is held against"


def _aligned(lines: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right, `how` to the left."""
    rows = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, *(number for number, head in enumerate(rows[0]) if head in ("how", "against"))}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
