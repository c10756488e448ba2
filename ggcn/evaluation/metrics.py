"""All distances between two sets of features, [n, width] float32 on one device."""

from typing import Any

from torch import Tensor

from ggcn.evaluation.fid import fid, kid
from ggcn.evaluation.precision_recall import NEIGHBOURS, precision_recall
from ggcn.precision import numeric_flags


@numeric_flags()
def distances(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, Any]:
    """FID, KID, precision, recall, density and coverage of samples' features with respect to real images', together
    with what they depend on: the sizes of both sets, the number of features, and the numbers of neighbours."""
    counts = {"count": len(fake), "against": len(real), "width": real.shape[1], "neighbours": NEIGHBOURS}
    return {"fid": fid(real, fake), **kid(real, fake, seed), **precision_recall(real, fake), **counts}
