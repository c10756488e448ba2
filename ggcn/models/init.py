"""Initial weights: variances kept from layer to layer, so that networks without normalisation begin non-linear."""

from math import sqrt

import torch
from torch import nn


def keep_variance(net: nn.Module, activation: nn.Module) -> None:
    """Draws the weights of every layer of `net` from N(0, g^2 / fan-in) with the gain g of `activation`, biases 0
    (He et al. 2015).

    PyTorch's own choice shrinks signals by three to five in every layer; SiLU and LeakyReLU are all but linear on
    what is left, an energy of four layers then sees little but means, and learning spends its first hundreds of
    steps on growing.
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
    """Numbers that a layer's output is a sum of."""
    if isinstance(layer, nn.ConvTranspose2d):  # a pixel takes part of the kernel, by the stride
        return layer.weight.shape[0] * layer.weight[0, 0].numel() / (layer.stride[0] * layer.stride[1])
    return layer.weight[0].numel()
