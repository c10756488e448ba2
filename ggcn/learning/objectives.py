"""The objectives of energies and up-samplers. An engine drives each as a module with one forward and one backward;
what is differentiated twice happens inside the forward."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn

from ggcn.config.grids import Grid
from ggcn.distributed.lanes import exact_share
from ggcn.models.build import Energies, Upsamplers
from ggcn.precision import widen

ENERGY_TERMS = ("energy_data", "energy_samples", "energy_gap", "jko")


class EnergyObjective(nn.Module):
    """Sum over grids of: mean E(data) - mean E(samples), the JKO term, and an L2 term on f.

    The JKO term gamma/2 * mean_S |grad_x f(x)|^2 stands for the squared Wasserstein distance that the
    points in S move in one JKO step (Benamou-Brenier); gamma 0 leaves plain maximum likelihood, the KL flow.
    """

    def __init__(
        self,
        energies: Energies,
        grids: Sequence[Grid],
        jko_points: str,
        l2: float,
        jko_fraction: float = 1.0,
        lane_width: int = 1,
    ) -> None:
        super().__init__()
        self.energies = energies
        self.settings, self.l2 = list(grids), l2
        self.jko_points, self.jko_fraction, self.lane_width = jko_points, jko_fraction, lane_width

    def forward(self, data: list[Tensor], samples: list[Tensor], times: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and [grids, 4] ENERGY_TERMS.

        data, samples: per grid [n, c, size, size], detached. times [n] in [0, 1]: where on the segment from
        datum to sample the JKO term is evaluated, if it is evaluated on segments.
        """
        pairs = zip(data, samples, strict=True)
        losses, terms = zip(
            *(self._grid(number, *pair, times) for number, pair in enumerate(pairs)), strict=True
        )
        return torch.stack(losses).sum(), torch.stack(terms)

    def _grid(self, number: int, data: Tensor, samples: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.settings[number].gamma
        x = torch.cat([data, samples])
        f_data, f_samples = self.energies.neg_energy(number, x).chunk(2)
        loss = (
            f_samples.mean() - f_data.mean() + self.l2 * (f_data.square().mean() + f_samples.square().mean())
        )
        jko = torch.zeros((), device=x.device)
        if gamma > 0:
            jko = self._jko(number, self._jko_points(data, samples, times))
            loss = loss + gamma / 2 * jko
        reference_data, reference_samples = self.energies.reference(x).chunk(2)
        energy_data, energy_samples = (reference_data - f_data).mean(), (reference_samples - f_samples).mean()
        return loss, torch.stack([energy_data, energy_samples, energy_data - energy_samples, jko]).detach()

    def _jko_points(self, data: Tensor, samples: Tensor, times: Tensor) -> Tensor:
        """The set S: the same fraction of every lane, or the term would depend on the number of ranks."""
        if self.jko_points == "segments":
            samples = data.lerp(samples, times[:, None, None, None])
        count = ceil(exact_share(self.jko_fraction, self.lane_width))
        subsets = [x.unflatten(0, (-1, self.lane_width))[:, :count].flatten(0, 1) for x in (data, samples)]
        return {"data": subsets[0], "both": torch.cat(subsets)}.get(self.jko_points, subsets[1])

    def _jko(self, number: int, x: Tensor) -> Tensor:
        """mean over x of |grad_x f|^2."""
        x = x.detach().requires_grad_()
        f = self.energies.neg_energy(number, x, self.energies.jko_precision)
        gradient = torch.autograd.grad(f.sum(), x, create_graph=True)[0]
        return widen(gradient).square().flatten(1).sum(1).mean()


class AmortizationObjective(nn.Module):
    """Sum over grids of |U(input, noise) - chain end|^2 per pixel: the up-samplers amortize the chains, of whose noise
    they see what is in the starts."""

    def __init__(self, upsamplers: Upsamplers) -> None:
        super().__init__()
        self.upsamplers = upsamplers

    def forward(
        self,
        inputs: list[Tensor],
        starts: list[Tensor],
        ends: list[Tensor],
        costs: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """inputs: z and coarser chain ends; starts, ends: per grid [n, c, size, size]; costs: per grid what its error
        is divided by in the loss, 1 by default.

        Returns the loss, and the error of each grid whose up-sampler learns, [learned grids].
        """
        learned = self.upsamplers.learned
        errors = [
            (self.upsamplers.foreseen_end(number, inputs[number], starts[number]) - ends[number])
            .square()
            .mean()
            for number in learned
        ]
        if costs is None:
            return torch.stack(errors).sum(), torch.stack(errors).detach()
        weighted = [error / costs[number] for number, error in zip(learned, errors, strict=True)]
        return torch.stack(weighted).sum(), torch.stack(errors).detach()
