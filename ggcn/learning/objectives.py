"""What the two networks minimise. Each objective is the module that an engine drives: one forward, one
backward, everything that is differentiated twice inside it."""

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
    particles in S move in one JKO step (Benamou-Brenier); gamma 0 leaves plain maximum likelihood, the KL flow.
    """

    def __init__(
        self,
        energies: Energies,
        grids: Sequence[Grid],
        particles: str,
        l2: float,
        share: float = 1.0,
        lane_width: int = 1,
    ) -> None:
        super().__init__()
        self.energies = energies
        self.settings = list(grids)
        self.particles, self.share, self.lane_width = particles, share, lane_width
        self.l2 = l2

    def forward(self, data: list[Tensor], samples: list[Tensor], shares: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and [grids, 4] ENERGY_TERMS.

        data, samples: per grid [n, c, size, size], detached; shares [n] in [0, 1]: where on the segment from
        datum to sample the JKO term is taken, if it is taken there.
        """
        pairs = zip(data, samples, strict=True)
        losses, terms = zip(
            *(self._grid(number, *pair, shares) for number, pair in enumerate(pairs)), strict=True
        )
        return torch.stack(losses).sum(), torch.stack(terms)

    def _grid(self, number: int, data: Tensor, samples: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.settings[number].gamma
        x = torch.cat([data, samples])
        f_data, f_samples = self.energies.neg_energy(number, x).chunk(2)
        loss = (
            f_samples.mean() - f_data.mean() + self.l2 * (f_data.square().mean() + f_samples.square().mean())
        )
        jko = torch.zeros((), device=x.device)
        if gamma > 0:
            jko = self._jko(number, self._particles(data, samples, shares))
            loss = loss + gamma / 2 * jko
        reference_data, reference_samples = self.energies.reference(x).chunk(2)
        low, high = (reference_data - f_data).mean(), (reference_samples - f_samples).mean()
        return loss, torch.stack([low, high, low - high, jko]).detach()

    def _particles(self, data: Tensor, samples: Tensor, shares: Tensor) -> Tensor:
        """S: of every lane the same share, or the term would depend on the number of ranks."""
        if self.particles == "segments":
            samples = data.lerp(samples, shares[:, None, None, None])
        count = ceil(exact_share(self.share, self.lane_width))
        few = [x.unflatten(0, (-1, self.lane_width))[:, :count].flatten(0, 1) for x in (data, samples)]
        return {"data": few[0], "both": torch.cat(few)}.get(self.particles, few[1])

    def _jko(self, number: int, x: Tensor) -> Tensor:
        """mean over x of |grad_x f|^2."""
        x = x.detach().requires_grad_()
        f = self.energies.neg_energy(number, x, self.energies.jko_precision)
        gradient = torch.autograd.grad(f.sum(), x, create_graph=True)[0]
        return widen(gradient).square().flatten(1).sum(1).mean()


class AmortizationObjective(nn.Module):
    """Sum over grids of |U(source) - chain end|^2 per pixel: the up-samplers learn what the chains did."""

    def __init__(self, upsamplers: Upsamplers) -> None:
        super().__init__()
        self.upsamplers = upsamplers

    def forward(self, sources: list[Tensor], ends: list[Tensor]) -> tuple[Tensor, Tensor]:
        """sources: z and coarser chain ends, ends: per grid [n, c, size, size].

        Returns the loss, and the error of each grid whose up-sampler learns, [learned grids].
        """
        errors = [
            (self.upsamplers.start(number, sources[number]) - ends[number]).square().mean()
            for number in self.upsamplers.learned
        ]
        return torch.stack(errors).sum(), torch.stack(errors).detach()
