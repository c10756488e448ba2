"""The latent vector z whose image agrees with given pixels."""

import torch
from torch import Tensor

from ggcn.models.build import Upsamplers, frozen

FIT_STEPS, FIT_LR = 150, 0.1
"""of Adam"""
FIT_STD = 0.2
"""standard deviation with which given pixels are to be met, pixels in [-1, 1]"""


def fit_z(upsamplers: Upsamplers, z: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """The most likely z [n, hidden] under N(0, I) given pixels y [n, c, size, size] of the coarsest grid where mask
    [size, size] is True: Adam from `z` on |U_0(z) - y|^2 / (2 FIT_STD^2) + |z|^2 / 2."""
    z = z.detach().clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=FIT_LR)
    with frozen(upsamplers), torch.enable_grad():
        for _ in range(FIT_STEPS):
            adam.zero_grad()
            error = (upsamplers.start(0, z) - pixels)[:, :, mask]
            (error.square().sum() / (2 * FIT_STD**2) + z.square().sum() / 2).backward()
            adam.step()
    return z.detach()
