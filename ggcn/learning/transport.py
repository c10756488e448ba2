"""The JKO flow as transport: a regression of -grad E on the way from chain starts to data.

For any coupling of starts x0 and data x1, with x_t = (1 - t) x0 + t x1 and t uniform on [0, 1],

    E f(x0) - E f(x1) + gamma/2 E|grad f(x_t)|^2
        = gamma/2 E|grad f(x_t) - (x1 - x0) / gamma|^2 - E|x1 - x0|^2 / (2 gamma)

(f(x1) - f(x0) is the integral of grad f(x_t).(x1 - x0) over t). So the contrastive loss with the chains' starts as
negatives and the JKO term on coupled segments is a regression: bounded below, with a value that can be held out. Here
energies are in units of the chain's time, gamma = 1, and each grid's loss is divided by its transport cost
E|x1 - x0|^2. Kin: Action Matching (Neklyudov et al. 2023), Energy Matching and Equilibrium Matching (2025).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ggcn.models.build import Energies, Upsamplers
from ggcn.precision import widen
from ggcn.sampling.noise import Noise

BLOCK = 256
"""samples that are assigned to each other at most: the cost of a solution grows with the cube"""


@dataclass
class Pairs:
    """Starts and data coupled, per grid [n, c, size, size], and where on the way between them to look, [n]."""

    starts: list[Tensor]
    data: list[Tensor]
    times: list[Tensor]

    def costs(self) -> Tensor:
        """Per grid mean |x1 - x0|^2, float32 [grids]."""
        moves = zip(self.starts, self.data, strict=True)
        return torch.stack([(data - start).square().flatten(1).sum(1).mean() for start, data in moves])


def couple(
    upsamplers: Upsamplers,
    source: Tensor,
    data: list[Tensor],
    start_noise: Sequence[float],
    noise: Noise,
    times: np.ndarray,
) -> Pairs:
    """On finer grids a datum with its own coarser version, up-sampled by the linear maps; on the coarsest grid starts
    from `source` with the data in the order in which they come. Starts get noise of standard deviation `start_noise`
    (one entry, or one per grid).

    data: per grid [n, c, size, size]; times [grids, n] in [0, 1].
    """
    with torch.no_grad():
        starts = [upsamplers.base(number, x) for number, x in enumerate([source, *data[:-1]])]
        stds = start_noise if len(start_noise) > 1 else list(start_noise) * len(starts)
        for start, std in zip(starts, stds, strict=True):
            start.add_(noise.normal(*start.shape), alpha=std)
    return Pairs(starts, list(data), list(torch.from_numpy(times).to(source)))


def assignment(starts: Tensor, data: Tensor, lane_width: int) -> Tensor:
    """For each of `starts` [n, ...] the number of the datum that it goes to, int64 [n]: the pairing of least total
    squared distance within blocks of whole lanes, BLOCK samples at most."""
    block = max(BLOCK // lane_width, 1) * lane_width
    chosen = []
    for first in range(0, len(starts), block):
        one, other = (x[first : first + block].flatten(1).double() for x in (starts, data))
        _, columns = linear_sum_assignment(torch.cdist(one, other).square().numpy())
        chosen.append(columns + first)
    return torch.from_numpy(np.concatenate(chosen))


def decay(times: Tensor, begin: float) -> Tensor:
    """c(t) = min(1, (1 - t) / (1 - begin)): the share of the displacement that -grad E is to equal at time t."""
    return torch.ones_like(times) if begin >= 1 else ((1 - times) / (1 - begin)).clamp(max=1)


class TransportObjective(nn.Module):
    """Sum over grids of E |grad f(x_t) - c(t) (x1 - x0)|^2 / E |x1 - x0|^2."""

    def __init__(self, energies: Energies, decay_from: float) -> None:
        super().__init__()
        self.energies, self.decay_from = energies, decay_from

    def forward(
        self, starts: list[Tensor], data: list[Tensor], times: list[Tensor], costs: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """The loss, and per grid [grids, 2]: mean squared error and mean squared target.

        costs: per grid mean |x1 - x0|^2 of the global batch.
        """
        terms = self.errors(starts, data, times)
        loss = torch.stack([term[0] / cost for term, cost in zip(terms, costs, strict=True)]).sum()
        return loss, torch.stack(terms).detach()

    def errors(self, starts: list[Tensor], data: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        """Per grid [2]: mean squared error and mean squared target."""
        triples = zip(starts, data, times, strict=True)
        return [self._grid(number, *triple) for number, triple in enumerate(triples)]

    def _grid(self, number: int, start: Tensor, data: Tensor, times: Tensor) -> Tensor:
        t = times[:, None, None, None]
        target = (data - start) * decay(t, self.decay_from)
        x = start.lerp(data, t).detach().requires_grad_()
        f = self.energies.neg_energy(number, x, self.energies.jko_precision)
        force = widen(torch.autograd.grad(f.sum(), x, create_graph=True)[0])
        return torch.stack([y.square().flatten(1).sum(1).mean() for y in (force - target, target)])
