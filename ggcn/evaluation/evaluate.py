"""The evaluation of a trained model: all numbers, and the settings that they depend on."""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggcn import __version__
from ggcn.config.data import DataConfig
from ggcn.data import remote
from ggcn.errors import UserError
from ggcn.evaluation import feature_cache, samples, statistics
from ggcn.evaluation.evaluator import COMPONENTS, Evaluator
from ggcn.evaluation.feature_cache import FeatureCache
from ggcn.evaluation.features import Network, features
from ggcn.evaluation.images import MIN_IMAGES, ImageSet, read
from ggcn.evaluation.memorization import downscale, memorization
from ggcn.paths import VARIABLE, expand_home, expand_variables, is_local
from ggcn.redact import shard_folder
from ggcn.sampling.sampler import Sampler
from ggcn.sampling.settings import AMORTIZED, AMORTIZED_STEPS, SamplerSettings

MAX_SAMPLES = 5000
"""number of samples by default, where there are at least as many training images"""


@dataclass(frozen=True)
class Request:
    """What to evaluate a model with."""

    data: str = ""
    """folder of training shards; empty: the one in the run's config"""
    holdout: str = ""
    """shards of images never trained on; empty: the folder `holdout` in `data`, where there is one"""
    ood: Sequence[str] = ()
    """shards of other images, which should have a high energy"""
    count: int | None = None
    """number of samples; by default as many as there are training images, up to MAX_SAMPLES"""
    limit: int = 50_000
    """images per set at most, evenly spaced"""
    seed: int = 0
    batch: int = 64
    """chains at once"""
    cache: Path | None = field(default_factory=feature_cache.default_folder)
    """folder of cached features; None: they are not cached"""
    config: DataConfig = field(default_factory=DataConfig)
    """how shards are fetched, and whether `pipe:` may run commands"""


@dataclass(frozen=True)
class ImageSets:
    """The real images of an evaluation."""

    train: ImageSet
    holdout: ImageSet | None
    ood: dict[str, ImageSet]
    """by the name in the results"""

    def named(self) -> dict[str, ImageSet]:
        """All sets by their names in the results, the training set first."""
        return {"train": self.train, **({"held-out": self.holdout} if self.holdout else {}), **self.ood}


def evaluate(sampler: Sampler, net: Network, request: Request) -> dict[str, Any]:
    """All results as JSON can hold them; see docs/evaluation.md.

    Raises UserError for shards that are missing or do not fit the model, and for chains that do not stay finite.
    """
    request = _with_defaults(sampler, request)
    sets = _read_sets(sampler, request)
    train, holdout = sets.train, sets.holdout
    count = request.count or min(len(train), MAX_SAMPLES)
    evaluator = Evaluator(net, train, FeatureCache(request.cache), request.seed)
    starts, ends, downscaled, energies = _draw(sampler, net, count, request)
    settings = samples.sampling_settings(sampler, request.seed)
    real = (holdout.pixels, evaluator.cached_features(holdout, "held-out images")) if holdout else None
    distances = _baselines(evaluator, count, None if real is None else real[1])
    distances["chain starts"] = evaluator.distances(starts) | {"settings": settings | {"chain_step": 0}}
    last_step = {"chain_step": sampler.grids[-1].steps}
    distances["samples"] = evaluator.distances(ends) | {"settings": settings | last_step}
    distances |= _amortized(sampler, evaluator, count, request)
    flip = sampler.config.data.flip
    return {
        "samples": settings | {"count": count},
        "features": net.name,
        "data": _describe_data(request, sets, sampler),
        "distances": distances,
        "memorization": memorization(train, evaluator.train_features, downscaled, ends, real, flip),
        "energy": _energies(sampler, sets, energies),
        "versions": {"ggcn": __version__, "torch": torch.__version__},
    }


def _read_sets(sampler: Sampler, request: Request) -> ImageSets:
    size, crop = sampler.grids[-1].size, sampler.config.data.crop
    read_set = partial(read, size=size, limit=request.limit, config=request.config)
    train = read_set(request.data, crop=crop)
    holdout = read_set(request.holdout, crop=crop) if request.holdout else None
    return ImageSets(
        train, holdout, {f"ood {shard_folder(folder)}": read_set(folder) for folder in request.ood}
    )


def _draw(sampler: Sampler, net: Network, count: int, request: Request) -> tuple[Tensor, ...]:
    """Features of the finest chains' starts and ends, the downscaled ends, and their energies; the pixels of all
    samples would fill the memory."""
    columns = []
    for batch in samples.sample_batches(sampler, count, request.seed, request.batch):
        columns.append(
            (features(net, batch.starts), features(net, batch.ends), downscale(batch.ends), batch.energies)
        )
    starts, ends, downscaled, energies = map(torch.cat, zip(*columns, strict=True))
    return starts, ends, downscaled, energies


def _amortized(
    sampler: Sampler, evaluator: Evaluator, count: int, request: Request
) -> dict[str, dict[str, Any]]:
    """Distances of samples without the long chains, for models whose up-samplers learn what those do."""
    if not sampler.amortizable or sampler.settings.mode == AMORTIZED:
        return {}
    rows = {}
    for steps, name in {0: "up-samplers alone", AMORTIZED_STEPS: "up-samplers, then {} step"}.items():
        short = copy(sampler)
        short.settings = SamplerSettings(AMORTIZED, steps, noise=sampler.settings.noise)
        batches = samples.sample_batches(short, count, request.seed, request.batch)
        sample_features = torch.cat([features(evaluator.net, batch.ends) for batch in batches])
        settings = samples.sampling_settings(short, request.seed) | {"chain_step": steps}
        rows[name.format(steps)] = evaluator.distances(sample_features) | {"settings": settings}
    return rows


def _with_defaults(sampler: Sampler, request: Request) -> Request:
    """The request with its defaults filled in. Raises UserError for values that are too small."""
    for name, value in (("count", request.count or MIN_IMAGES), ("limit", request.limit)):
        if value < MIN_IMAGES:
            raise UserError(f"--{name} {value} is too small to measure anything; give at least {MIN_IMAGES}")
    data = request.data or _training_shards(sampler.config.data.shards)
    default = Path(remote.local_path(data) or data) / "holdout"
    holdout = request.holdout or (str(default) if (default / "manifest.json").is_file() else "")
    return replace(request, data=data, holdout=holdout)


def _training_shards(folder: str) -> str:
    """The folder that the run was trained on, if it is a path: the config may come from someone else, and must not
    make this process run a command, send its environment, or ask a server. Raises UserError for anything else."""
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


def _baselines(
    evaluator: Evaluator, count: int, holdout_features: Tensor | None
) -> dict[str, dict[str, Any]]:
    """Distances of what no model made: real images, those never trained on, and the Gaussian baseline."""
    settings = {"settings": {"seed": evaluator.seed}}
    baselines = {"real half against half": evaluator.real_baseline() | settings}
    if holdout_features is not None:
        baselines["held-out"] = evaluator.distances(holdout_features) | settings
    baselines[f"PCA-{COMPONENTS} Gaussian"] = evaluator.gaussian_baseline(count) | settings
    return baselines


def _describe_data(request: Request, sets: ImageSets, sampler: Sampler) -> dict[str, Any]:
    """The sets of images, and whether the run was trained on the first."""
    trained = samples.data_hash(sampler)
    same = None if trained is None else trained == hashlib.sha256(sets.train.hash.encode()).hexdigest()
    described = {name: _describe_set(images) for name, images in sets.named().items()}
    return {"sets": described, "trained_on_these": same, "limit": request.limit}


def _describe_set(images: ImageSet) -> dict[str, Any]:
    undecodable = {"undecodable": images.undecodable} if images.undecodable else {}
    return {
        "folder": shard_folder(images.folder),
        "manifest": images.hash,
        "count": len(images),
        "available": images.available,
        **undecodable,
    }


def _energies(sampler: Sampler, sets: ImageSets, sample_energies: Tensor) -> dict[str, Any]:
    """Energies on the finest grid of all sets, and how well they tell each from real images."""
    values = {name: samples.energies(sampler, images.pixels) for name, images in sets.named().items()}
    reference = "held-out" if sets.holdout is not None else "train"
    ood = {name: values.pop(name) for name in sets.ood}
    values |= {"samples": sample_energies, **ood}
    for name, numbers in values.items():
        if not bool(numbers.isfinite().all()):
            raise UserError(f"the energies of {name} are not finite; take another checkpoint with --step")
    summaries = {name: statistics.summary(numbers) for name, numbers in values.items()}
    for name, numbers in values.items():
        base = "train" if name in ("held-out", "samples") else reference
        if name != "train":
            summaries[name]["auroc"] = statistics.auroc(values[base], numbers)
            summaries[name]["auroc_against"] = base
    return {"grid": sampler.grids[-1].size, "sets": summaries, "histograms": statistics.histograms(values)}
