"""Peak signal-to-noise ratio of restored images."""

import torch
from torch import Tensor


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """The ratio in dB of images [n, c, h, h] in [-1, 1], over all pixels or where mask [h, h] is True."""
    error = (images.clamp(-1, 1) - truth).square()
    mean = (error if mask is None else error[:, :, mask]).mean()
    return float(10 * torch.log10(4 / mean))
