"""Statistics of sets of numbers, such as energies."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 60


def auroc(low: Tensor, high: Tensor) -> float:
    """Probability that a number of `high` is above one of `low`, ties counted half; 0.5: cannot be told apart."""
    line = low.double().sort().values
    below = torch.searchsorted(line, high.double(), right=False)
    upto = torch.searchsorted(line, high.double(), right=True)
    return float((below + upto).double().mean() / (2 * len(low)))


def summary(values: Tensor) -> dict[str, Any]:
    """Count, mean, standard deviation and quantiles of numbers [n]."""
    values = values.double()
    values_at = np.quantile(values.numpy(), QUANTILES).tolist()
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": dict(zip(map(str, QUANTILES), values_at, strict=True)),
    }


def histograms(sets: dict[str, Tensor]) -> dict[str, Any]:
    """Counts of each set's numbers in BINS bins that they share: {"edges": [...], "counts": {name: [...]}}.

    The bins span the sets' middle 99 %; what lies outside is counted in the first and the last.
    """
    numbers = {name: values.double().numpy() for name, values in sets.items()}
    middles = [np.quantile(values, (0.005, 0.995)) for values in numbers.values()]
    low, high = min(m[0] for m in middles), max(m[1] for m in middles)
    edges = np.linspace(low, max(high, low + 1e-6 + 1e-6 * abs(low)), BINS + 1)
    counts = {
        name: np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist()
        for name, values in numbers.items()
    }
    return {"edges": edges.tolist(), "counts": counts}
