"""The JKO flow as transport: a regression of -grad E on the displacement from chain starts to data.

For any coupling of starts x0 and data x1, with x_t = (1 - t) x0 + t x1 and t uniform on [0, 1],

    E f(x0) - E f(x1) + gamma/2 E|grad f(x_t)|^2
        = gamma/2 E|grad f(x_t) - (x1 - x0) / gamma|^2 - E|x1 - x0|^2 / (2 gamma)

(f(x1) - f(x0) is the integral of grad f(x_t).(x1 - x0) over t). So the contrastive loss with the chains' starts as
negatives and the JKO term on coupled segments is a regression: bounded below, and measurable on held-out data. Here
energies are in units of the chain's time, gamma = 1, and each grid's loss is divided by its transport cost
E|x1 - x0|^2. Related: Action Matching (Neklyudov et al. 2023), Energy Matching and Equilibrium Matching (2025).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ggcn.config.schema import FlowConfig
from ggcn.learning.augmentation import Augmentation
from ggcn.models.build import Energies, Upsamplers
from ggcn.precision import widen
from ggcn.sampling.noise import Noise

BLOCK = 256
"""largest number of samples in one assignment problem, whose cost grows with the cube"""


@dataclass
class Pairs:
    """Coupled starts and data, per grid [n, c, size, size], and times in [0, 1] between them, [n]."""

    starts: list[Tensor]
    data: list[Tensor]
    times: list[Tensor]

    def augmented(self, augmentation: Augmentation) -> "Pairs":
        """The pairs with each one's map applied to its start and its datum."""
        starts, data = ([augmentation.apply(x) for x in images] for images in (self.starts, self.data))
        return Pairs(starts, data, self.times)

    def costs(self) -> Tensor:
        """Per grid mean |x1 - x0|^2, float32 [grids]."""
        pairs = zip(self.starts, self.data, strict=True)
        return torch.stack([(data - start).square().flatten(1).sum(1).mean() for start, data in pairs])


def couple(
    upsamplers: Upsamplers,
    coarsest_input: Tensor,
    data: list[Tensor],
    start_noise: Sequence[float],
    noise: Noise,
    times: np.ndarray,
) -> Pairs:
    """Couples on finer grids each datum with its own coarser version, up-sampled by the linear maps; on the coarsest
    grid the data with the linear maps of `coarsest_input`, in the given order. Noise of standard deviation
    `start_noise` (one entry, or one per grid) is added to the starts.

    data: per grid [n, c, size, size]; times [grids, n] in [0, 1].
    """
    with torch.no_grad():
        starts = [upsamplers.base(number, x) for number, x in enumerate([coarsest_input, *data[:-1]])]
        stds = start_noise if len(start_noise) > 1 else list(start_noise) * len(starts)
        for start, std in zip(starts, stds, strict=True):
            start.add_(noise.normal(*start.shape), alpha=std)
    return Pairs(starts, list(data), list(torch.from_numpy(times).to(coarsest_input)))


def assignment(starts: Tensor, data: Tensor, lane_width: int) -> Tensor:
    """For each of `starts` [n, ...] the index of its datum, int64 [n]: the assignment of least total squared distance
    within blocks of complete lanes, of BLOCK samples at most."""
    block = max(BLOCK // lane_width, 1) * lane_width
    indices = []
    for first in range(0, len(starts), block):
        x0, x1 = (x[first : first + block].flatten(1).double() for x in (starts, data))
        _, columns = linear_sum_assignment(torch.cdist(x0, x1).square().numpy())
        indices.append(columns + first)
    return torch.from_numpy(np.concatenate(indices))


def decay(times: Tensor, begin: float) -> Tensor:
    """c(t) = min(1, (1 - t) / (1 - begin)): the target of -grad E at time t, as a fraction of the displacement."""
    return torch.ones_like(times) if begin >= 1 else ((1 - times) / (1 - begin)).clamp(max=1)


class TransportObjective(nn.Module):
    """Sum over grids of E |grad f(x_t) - c(t) (x1 - x0)|^2 / E |x1 - x0|^2, and in contrastive steps the energy gap
    between data and chain ends."""

    def __init__(self, energies: Energies, flow: FlowConfig) -> None:
        super().__init__()
        self.energies, self.flow = energies, flow

    def forward(
        self,
        starts: list[Tensor],
        data: list[Tensor],
        times: list[Tensor],
        costs: Sequence[float],
        positives: list[Tensor] | None = None,
        negatives: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and per grid [grids, 2]: mean squared error and mean squared target; in contrastive steps
        [grids, 3], with the mean energy gap, data minus chain ends, in units of the transport cost.

        costs: per grid mean |x1 - x0|^2 of the global batch. positives, negatives: per grid data and chain ends.
        """
        errors = self.errors(starts, data, times)
        loss = torch.stack([error[0] / cost for error, cost in zip(errors, costs, strict=True)]).sum()
        terms = torch.stack(errors).detach()
        if positives is None or negatives is None:
            return loss, terms
        pairs = zip(positives, negatives, costs, strict=True)
        gaps = torch.stack([self._gaps(number, *pair) for number, pair in enumerate(pairs)])
        bounded = gaps.clamp(min=-self.flow.contrastive_margin).mean(1).sum()
        return loss + self.flow.contrastive_weight * bounded, torch.cat(
            [terms, gaps.detach().mean(1, keepdim=True)], 1
        )

    def errors(self, starts: list[Tensor], data: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        """Per grid [2]: mean squared error and mean squared target."""
        triples = zip(starts, data, times, strict=True)
        return [self._grid(number, *triple) for number, triple in enumerate(triples)]

    def _grid(self, number: int, start: Tensor, data: Tensor, times: Tensor) -> Tensor:
        t = times[:, None, None, None]
        target = (data - start) * decay(t, self.flow.decay_from)
        x = start.lerp(data, t).detach().requires_grad_()
        f = self.energies.neg_energy(number, x, self.energies.jko_precision)
        force = widen(torch.autograd.grad(f.sum(), x, create_graph=True)[0])
        return torch.stack([y.square().flatten(1).sum(1).mean() for y in (force - target, target)])

    def _gaps(self, number: int, data: Tensor, end: Tensor, cost: float) -> Tensor:
        """E(datum) - E(chain end) for each pair, in units of the transport cost, [n]."""
        f_data, f_end = widen(self.energies.neg_energy(number, torch.cat([data, end]))).chunk(2)
        return (f_end - f_data) / cost
