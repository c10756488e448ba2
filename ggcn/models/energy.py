"""Bottom-up energies: one network per grid."""

from collections.abc import Callable

from torch import Tensor, nn

from ggcn.config import EnergyConfig
from ggcn.precision import widen

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


class ConvEnergy(nn.Module):
    """The negative energy f of one grid: strided convolutions down to 4 x 4, then one linear read-out.

    No normalisation, so that a sample's energy is its own; no bias in the read-out, which would only shift
    the energy and is invisible to the chains and to the density.
    """

    def __init__(self, size: int, channels: int, config: EnergyConfig) -> None:
        super().__init__()
        width, activation = config.width, ACTIVATIONS[config.activation]
        layers: list[nn.Module] = [_stem(size, channels, width), activation()]
        size = min(size, max(size // 2, STEM_KEEPS))
        while size > 4:
            wider = min(2 * width, config.max_width)
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), activation()]
            width, size = wider, size // 2
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(width * size * size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, channels, size, size] in [-1, 1] -> f(x) [n], float32 whatever the autocast."""
        hidden = self.features(x).flatten(1)
        return (widen(hidden) * self.readout.weight).sum(1)


STEM_KEEPS = 16
"""grids up to this size keep their resolution in the first layer; finer ones are halved at once, which makes
a chain step three times cheaper"""


def _stem(size: int, channels: int, width: int) -> nn.Module:
    if size <= STEM_KEEPS:
        return nn.Conv2d(channels, width, 3, padding=1)
    return nn.Conv2d(channels, width, 4, stride=2, padding=1)
