"""Initial weights that keep the variance from layer to layer, so that networks without normalisation start
non-linear."""

from math import sqrt

import torch
from torch import nn


def keep_variance(net: nn.Module, activation: nn.Module) -> None:
    """Draws the weights of every layer of `net` from N(0, g^2 / fan-in) with the gain g of `activation`, biases 0
    (He et al. 2015).

    PyTorch's default shrinks signals by a factor of three to five in every layer, where SiLU and LeakyReLU are almost
    linear. An energy of four layers then depends on little but means, and the first hundreds of steps only increase
    the weights.
    """
    factor = gain(activation)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=factor / sqrt(_fan_in(layer)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def gain(activation: nn.Module) -> float:
    """1 / sqrt(E phi(z)^2) for z ~ N(0, 1): what keeps the second moment through an activation phi."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    return float(((activation(z).square() * density).sum() / density.sum()).rsqrt())


def _fan_in(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """The number of terms in a layer's output."""
    if isinstance(layer, nn.ConvTranspose2d):  # with a stride, each pixel uses a part of the kernel
        return layer.weight.shape[0] * layer.weight[0, 0].numel() / (layer.stride[0] * layer.stride[1])
    return layer.weight[0].numel()
