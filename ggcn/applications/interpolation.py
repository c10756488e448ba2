"""Interpolation between latent vectors z along great circles, each z drawn through the model's chains."""

from math import acos, sin

import torch
from torch import Tensor

from ggcn.applications.chains import finest_chain_states, pad_to_lanes, sample_key
from ggcn.errors import UserError
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler


@torch.inference_mode(False)
def interpolate(sampler: Sampler, rows: range, seed: int, count: int) -> Tensor:
    """Row r: `count` images on the great circle from the z of image 2r of a seed to that of image 2r + 1, as
    [len(rows), count, c, size, size] on the CPU. All images of a row share the chain noise of its first.

    Raises UserError for a model without z.
    """
    model = sampler.config.model
    if model.chain_init != "hidden":
        raise UserError(
            f"there is no z to interpolate in {model.name}, whose chains start from {model.chain_init}; "
            "take a model with model.chain_init=hidden, such as ggcn or coopnets"
        )
    first, last = (sampler.initial([sample_key(seed, 2 * row + side) for row in rows]) for side in (0, 1))
    fractions = [index / max(count - 1, 1) for index in range(count)]
    z = torch.stack([slerp(first, last, fraction) for fraction in fractions], 1).flatten(0, 1)
    keys = [sample_key(seed, 2 * row) for row in rows for _ in range(count)]
    stops = [sampler.grids[-1].steps]
    z, keys = pad_to_lanes(z, sampler), [*keys, *keys[-1:] * (-len(keys) % sampler.lane_width)]
    states = finest_chain_states(sampler, z, Noise(keys, sampler.device), stops)
    return states[: len(rows) * count, 0].unflatten(0, (len(rows), count)).cpu()


def slerp(first: Tensor, last: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation between latent vectors [n, hidden]: unlike a straight line it keeps the length that
    N(0, I) vectors have.

    Shoemake 1985: sin((1 - t) w) / sin w a + sin(t w) / sin w b for the angle w between a and b.
    """
    vectors = []
    for a, b in zip(first, last, strict=True):
        cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1))
        angle = acos(cosine)
        if sin(angle) < 1e-6:
            vectors.append(torch.lerp(a, b, fraction))
        else:
            vectors.append((sin((1 - fraction) * angle) * a + sin(fraction * angle) * b) / sin(angle))
    return torch.stack(vectors)
