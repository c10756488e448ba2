"""The evaluation of a trained model: every number, and beside it what it depends on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggcn import __version__
from ggcn.config.data import DataConfig
from ggcn.data import remote
from ggcn.data.order import permutation
from ggcn.errors import UserError
from ggcn.evaluation import feature_cache, metrics, samples
from ggcn.evaluation.feature_cache import Cache
from ggcn.evaluation.features import Network, features
from ggcn.evaluation.images import ALL, LEAST, Images, at_once, enlarged, gaussian, read
from ggcn.evaluation.memorization import memorization, small
from ggcn.paths import VARIABLE, expand_home, expand_variables, is_local
from ggcn.redact import shard_folder
from ggcn.sampling.sampler import Sampler

COMPONENTS = 50
"""of the Gaussian that is the row to beat"""
MOST_SAMPLES = 5000
"""samples that are drawn by default, where there are so many training pictures"""


@dataclass
class Evaluator:
    """A data set seen through a feature network: what pictures are measured against.

    During training one Judge serves all evaluations; the data go through the network once.
    """

    net: Network
    train: Images
    cache: Cache
    seed: int = 0
    near: Tensor = field(init=False)
    """features of the training pictures [n, width], float32"""

    def __post_init__(self) -> None:
        self.near = self.kept(self.train, "training pictures")

    def kept(self, images: Images, what: str) -> Tensor:
        """Features of a set's pictures, from the cache where they are known."""
        make = partial(features, self.net, what=what)
        pixels: Any = images.pixels  # in memory or in the shards
        return self.cache.features(f"{self.net.name}/{images.key}", pixels, make)

    def row(self, found: Tensor) -> dict[str, Any]:
        """Distances of features [n, width] from the training set's."""
        return metrics.row(self._placed(self.near), self._placed(found), self.seed)

    def score(self, pixels: Tensor) -> dict[str, Any]:
        """Distances of uint8 pictures [n, 3, h, w] from the training set."""
        return self.row(features(self.net, pixels))

    def floor(self) -> dict[str, Any]:
        """One half of the training pictures against the other: what perfect samples would get, at half the count."""
        line = torch.from_numpy(permutation(len(self.near), self.seed, "evaluation halves"))
        half = len(line) // 2
        one, other = self.near[line[:half]], self.near[line[half : 2 * half]]
        return metrics.row(self._placed(one), self._placed(other), self.seed)

    def gaussian(self, count: int) -> dict[str, Any]:
        """Pictures of a Gaussian fitted to the training pictures' main components: the row to beat."""
        key = f"pca{COMPONENTS}-{self.train.key}-{count}-seed{self.seed}"
        pixels, size = gaussian(self.train.pixels, COMPONENTS, count, self.seed), self.train.pixels.shape[-1]
        key += "-bounded" if size > ALL else ""

        def make(drawn: Tensor) -> Tensor:
            parts = (enlarged(part, size) for part in drawn.split(at_once(self.train.pixels)))
            return torch.cat([features(self.net, part, "PCA Gaussian") for part in parts])

        return self.row(self.cache.features(f"{self.net.name}/{key}", pixels, make))

    def release(self) -> None:
        """Drops the training pictures, of which distances need the features alone; only `gaussian` is gone then."""
        self.train = replace(self.train, pixels=self.train.pixels[:0])

    def _placed(self, found: Tensor) -> Tensor:
        return found.to(next(self.net.parameters()).device)


@dataclass(frozen=True)
class Request:
    """What to evaluate a model with."""

    data: str = ""
    """folder of training shards; empty: the one in the run's config"""
    holdout: str = ""
    """shards of pictures never trained on; empty: the folder `holdout` in `data`, where there is one"""
    ood: Sequence[str] = ()
    """shards of other pictures, which the model should find unlikely"""
    count: int | None = None
    """samples to draw; by default as many as there are training pictures, up to MOST_SAMPLES"""
    most: int = 50_000
    """pictures taken of a set at most, evenly spaced"""
    seed: int = 0
    batch: int = 64
    """chains at once"""
    cache: Path | None = field(default_factory=feature_cache.default)
    """folder of features; None: they are not kept"""
    config: DataConfig = field(default_factory=DataConfig)
    """how shards are fetched, and whether `pipe:` may run commands"""


def evaluate(sampler: Sampler, net: Network, request: Request) -> dict[str, Any]:
    """Everything that is known of a model, as JSON can hold it; see docs/evaluation.md.

    Raises UserError for shards that are missing or do not fit the model, and for chains that do not stay finite.
    """
    request = _completed(sampler, request)
    size, crop = sampler.grids[-1].size, sampler.config.data.crop
    take = partial(read, size=size, most=request.most, config=request.config)
    train = take(request.data, crop=crop)
    held = take(request.holdout, crop=crop) if request.holdout else None
    others = {f"ood {shard_folder(folder)}": take(folder) for folder in request.ood}
    count = request.count or min(len(train), MOST_SAMPLES)
    judge = Evaluator(net, train, Cache(request.cache), request.seed)
    starts, seen, shrunk, energies = _seen(sampler, net, count, request)
    how = samples.settings(sampler, request.seed)
    real = (held.pixels, judge.kept(held, "held-out pictures")) if held else None
    rows = _real_rows(judge, count, None if real is None else real[1])
    rows["chain starts"] = judge.row(starts) | {"settings": how | {"chain_step": 0}}
    last = {"chain_step": sampler.grids[-1].steps}
    rows["samples"] = judge.row(seen) | {"settings": how | last}
    flip = sampler.config.data.flip
    return {
        "samples": how | {"count": count},
        "features": net.name,
        "data": _described(request, train, held, others, sampler),
        "rows": rows,
        "memorisation": memorization(train, judge.near, shrunk, seen, real, flip),
        "energy": _energies(sampler, train, held, energies, others),
        "versions": {"ggcn": __version__, "torch": torch.__version__},
    }


def _seen(sampler: Sampler, net: Network, count: int, request: Request) -> tuple[Tensor, ...]:
    """What is kept of samples: features of the finest chains' starts and ends, the ends made small, and their
    energies. Their pixels would fill the memory."""
    kept = []
    for part in samples.parts(sampler, count, request.seed, request.batch):
        kept.append((features(net, part.starts), features(net, part.ends), small(part.ends), part.energies))
    starts, ends, shrunk, energies = map(torch.cat, zip(*kept, strict=True))
    return starts, ends, shrunk, energies


def _completed(sampler: Sampler, request: Request) -> Request:
    """The request with what it leaves open, after a look at what is wrong with it."""
    for name, value in (("count", request.count or LEAST), ("limit", request.most)):
        if value < LEAST:
            raise UserError(f"--{name} {value} is too small to measure anything; {LEAST} is the least")
    data = request.data or _own_shards(sampler.config.data.shards)
    beside = Path(remote.local_path(data) or data) / "holdout"
    holdout = request.holdout or (str(beside) if (beside / "manifest.json").is_file() else "")
    return replace(request, data=data, holdout=holdout)


def _own_shards(folder: str) -> str:
    """The folder that the run was trained on, if it is a path: its config may be somebody else's, and must not make
    this process run a command, send its environment, or ask a server. Raises UserError for anything else."""
    if not folder:
        raise UserError("the run was trained on a mixture; name the shards to compare with by --data SHARDS")
    if not is_local(folder) or "${" in VARIABLE.sub("", folder):
        raise UserError(
            f"the run was trained on {shard_folder(folder)}, which is read only when you name it; add --data SHARDS"
        )
    if any(not match[1] for match in VARIABLE.finditer(folder)):
        raise UserError(
            f"the run was trained on {folder}, whose variables may stand for something else here; add --data SHARDS"
        )
    return expand_variables(expand_home(folder))


def _real_rows(judge: Evaluator, count: int, held: Tensor | None) -> dict[str, dict[str, Any]]:
    """Rows of what is no model: the floor, real pictures never trained on, and the row to beat."""
    settings = {"settings": {"seed": judge.seed}}
    rows = {"real half against half": judge.floor() | settings}
    if held is not None:
        rows["held-out"] = judge.row(held) | settings
    rows[f"PCA-{COMPONENTS} Gaussian"] = judge.gaussian(count) | settings
    return rows


def _described(
    request: Request, train: Images, held: Images | None, others: dict[str, Images], sampler: Sampler
) -> dict[str, Any]:
    """The sets of pictures, and whether the run was trained on the first."""
    trained = samples.data_hash(sampler)
    same = None if trained is None else trained == hashlib.sha256(train.hash.encode()).hexdigest()
    sets = {"train": train, **({"held-out": held} if held else {}), **others}
    told = {name: _of(images) for name, images in sets.items()}
    return {"sets": told, "trained_on_these": same, "limit": request.most}


def _of(images: Images) -> dict[str, Any]:
    left_out = {"undecodable": images.undecodable} if images.undecodable else {}
    return {
        "folder": shard_folder(images.folder),
        "manifest": images.hash,
        "count": len(images),
        "available": images.available,
        **left_out,
    }


def _energies(
    sampler: Sampler, train: Images, held: Images | None, ends: Tensor, others: dict[str, Images]
) -> dict[str, Any]:
    """Energies on the finest grid of all sets, and how well they tell each from real pictures."""
    values = {"train": samples.energies(sampler, train.pixels)}
    if held is not None:
        values["held-out"] = samples.energies(sampler, held.pixels)
    values["samples"] = ends
    values |= {name: samples.energies(sampler, images.pixels) for name, images in others.items()}
    for name, numbers in values.items():
        if not np.isfinite(numbers.numpy()).all():
            raise UserError(f"the energies of {name} are not finite; take another checkpoint with --step")
    real = "held-out" if held is not None else "train"
    summaries = {name: metrics.summary(numbers) for name, numbers in values.items()}
    for name, numbers in values.items():
        base = "train" if name in ("held-out", "samples") else real
        if name != "train":
            summaries[name]["auroc"] = metrics.auroc(values[base], numbers)
            summaries[name]["auroc_against"] = base
    return {"grid": sampler.grids[-1].size, "sets": summaries, "histograms": metrics.histograms(values)}
