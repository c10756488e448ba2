"""Recorded values: the random draws of a run, and the metrics of its first steps.

A change here means that every run ever trained would continue as a different one.
`python tests/dist/test_golden.py` writes the file again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY
from learning import learn
from rank_pool import RankPool

from ggcn.data.order import of_counts
from ggcn.distributed.lanes import Lanes, generator
from ggcn.sampling.noise import Noise

FILE = Path(__file__).with_name("golden.json")
PRESETS = ("ggcn", "ggcn_contrastive", "gcn", "multigrid", "coopnets", "frame")
STEPS = 3
PURPOSES = ("chain", "hidden", "data noise", "segments", "bank", "order", "flip", "crop")
TOLERANCE = 1e-3
"""relative: other processors add floats in another order"""


def digest(*values: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in values)).hexdigest()


def draws() -> dict[str, str]:
    """Digests of random streams, and of which samples are drawn when."""
    keys = {purpose: Lanes(4, width=2).keys(7, purpose, "step", 11) for purpose in PURPOSES}
    raw = {
        name: [generator(*key).bit_generator.random_raw(64) for key in lanes] for name, lanes in keys.items()
    }
    result = {f"raw/{name}": digest(*lanes) for name, lanes in raw.items()}
    noise = Noise(keys["chain"], torch.device("cpu")).normal(8, 3, 4, 4)
    result["normal/chain"] = digest(noise.numpy())
    lane, k = np.repeat(np.arange(4), 500), np.tile(np.arange(500), 4)
    counts, others = np.array([31, 50, 7, 90, 12]), np.array([64, 65])
    result["order"] = digest(*of_counts([counts], [1.0], 7, 4, 16).draws(lane, k))
    result["mixture"] = digest(*of_counts([counts, others], [1.0, 2.0], 7, 4, 16).draws(lane, k))
    return result


def curve(rank_pool: RankPool, preset: str) -> list[list[float]]:
    """Every metric of the first steps, in fp32 on one rank."""
    config = [*TINY, f"model={preset}", "engine.kind=plain", "engine.precision=fp32"]
    numbers = rank_pool.run(1, learn, config, STEPS)[0]
    return [numbers[f"metric/{step}"].tolist() for step in range(STEPS)]


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_draws_are_the_recorded_ones() -> None:
    assert draws() == recorded()["draws"]


@pytest.mark.parametrize("preset", PRESETS)
def test_first_steps_are_the_recorded_ones(rank_pool: RankPool, preset: str) -> None:
    np.testing.assert_allclose(
        curve(rank_pool, preset), recorded()["curves"][preset], rtol=TOLERANCE, atol=1e-6
    )


def write() -> None:
    """Records the draws and curves of the code as it is."""
    pool = RankPool()
    curves = {preset: curve(pool, preset) for preset in PRESETS}
    pool.close()
    FILE.write_text(json.dumps({"draws": draws(), "curves": curves}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
