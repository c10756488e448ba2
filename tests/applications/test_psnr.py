"""The PSNR of known errors."""

import numpy as np
import pytest
import torch

from ggcn.applications.psnr import psnr


def test_psnr_of_a_known_error() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    assert psnr(truth + 0.2, truth) == pytest.approx(20.0)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    image = truth.clone()
    image[:, :, 1:] = 1.0
    image[:, :, 0] = 0.02
    assert psnr(image, truth, mask) == pytest.approx(40.0)
    assert np.isfinite(psnr(image, truth))
