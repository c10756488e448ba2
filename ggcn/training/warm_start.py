"""Warm start: the networks of a new run begin with the weights of another, grid by grid, for train.init_from."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ggcn.applications.export import read_file
from ggcn.config.compose import load as load_config
from ggcn.config.schema import Config, ModelConfig
from ggcn.distributed import process_group
from ggcn.errors import UserError
from ggcn.learning.learner import Learner
from ggcn.models import Energies, Upsamplers, build
from ggcn.run import init_source
from ggcn.run.directory import RunDir
from ggcn.training.linear_maps import fit_linear_maps

log = logging.getLogger(__name__)

Weights = dict[str, dict[str, Tensor]]
"""tensors of "energies" and "upsamplers" by name"""


@dataclass
class WarmStart:
    """Networks with the weights of another run, and which of their parts have them."""

    networks: tuple[Energies, Upsamplers]
    origin: str
    """the source, for messages"""
    carried: list[str] = field(default_factory=list)
    """parts with the source's weights, such as "energy of 16 px" """
    anew: list[str] = field(default_factory=list)
    """parts with initial weights, and why"""
    buffers: set[str] = field(default_factory=set)
    """names of the up-samplers' buffers, such as fitted maps, that came along"""


@dataclass(frozen=True)
class Part:
    """The network of one grid, for which the source may have a counterpart."""

    title: str
    network: str
    """energies or upsamplers"""
    number: int
    sizes: tuple[int, ...]
    """which it is found by: the grid of an energy; of an up-sampler also the one before (0: it starts from z)"""
    settings: tuple[object, ...]
    """what its weights mean nothing without"""


def read(config: Config, run: RunDir) -> WarmStart | None:
    """The networks that a run with train.init_from begins with; None without it, or when their copy in the run
    directory was removed after the first checkpoint. Every rank calls it.

    Raises UserError when the copy is damaged or missing, or holds nothing that fits.
    """
    if not config.train.init_from:
        return None
    folder = run.path / init_source.FOLDER
    if not folder.is_dir() and any(run.checkpoints.glob("step_*/COMPLETE")):
        return None
    names = init_source.facts(run.path).get("files", [])
    if not names or init_source.hash_of({name: folder / name for name in names}) != config.train.init_hash:
        raise UserError(
            f"{folder} does not hold the weights that {run.path} began with; start another run=NAME with "
            "train.init_from"
        )
    source, weights = _read_weights(folder, config.train.init_weights)
    start = _transfer(config, source, weights, config.train.init_from)
    if not start.carried:
        raise UserError(
            f"nothing in train.init_from={start.origin} fits this model ({'; '.join(start.anew)}); choose another "
            "source, or leave it out"
        )
    return start


def begin(config: Config, learner: Learner, start: WarmStart | None) -> None:
    """Completes the networks of a run at step 0: fits the linear maps that did not come along, and logs which parts
    did. All ranks call it. Raises UserError when the weights to begin with are missing."""
    if config.train.init_from and start is None:
        raise UserError(
            "the weights of train.init_from are gone, and the run has no checkpoint; start another run"
        )
    if config.model.upsampler.base == "fitted":
        fit_linear_maps(config, learner, start.buffers if start else ())
    if start and process_group.is_main_process():
        log.info("begins with the weights of %s: %s", start.origin, ", ".join(start.carried))
        log.info("begins anew: %s", "; ".join(start.anew) or "nothing")


def _read_weights(folder: Path, kind: str) -> tuple[Config, Weights]:
    """The source's config and weights, from their copy in a run directory."""
    if (folder / init_source.EXPORTED).is_file():
        config, weights, _ = read_file(folder / init_source.EXPORTED)
        return config, weights
    config, weights = load_config(folder / "config.yaml"), _load(folder / "ema.pt")
    if kind == "raw":
        for network, engine in (("energies", "energy"), ("upsamplers", "upsampler")):
            weights[network] |= _raw(folder / engine / "state.pt", f"{network}.")
    return config, weights


def _raw(path: Path, prefix: str) -> dict[str, Tensor]:
    """A network's weights as the optimizer left them; none where it has nothing to learn."""
    parameters = _load(path)["parameters"] if path.is_file() else {}
    return {name.removeprefix(prefix): parts["weight"] for name, parts in parameters.items()}


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def _transfer(config: Config, source: Config, weights: Weights, origin: str) -> WarmStart:
    """The config's networks, with the source's weights wherever a part has a counterpart there."""
    energies, upsamplers = build(config)
    start = WarmStart((energies, upsamplers), origin)
    networks: dict[str, nn.Module] = {"energies": energies, "upsamplers": upsamplers}
    counterparts = {(part.network, part.sizes): part for part in parts(source.model)}
    for part in parts(config.model):
        module = networks[part.network].get_submodule(f"grids.{part.number}")
        if not module.state_dict():
            continue
        other = counterparts.get((part.network, part.sizes))
        state = _of_part(weights[part.network], other.number) if other else {}
        if reason := _misfit(part, other, module, state):
            start.anew.append(f"{part.title} ({reason})")
            continue
        module.load_state_dict(state)
        start.carried.append(part.title)
        if part.network == "upsamplers":
            start.buffers |= {f"grids.{part.number}.{name}" for name, _ in module.named_buffers()}
    return start


def parts(model: ModelConfig) -> Iterator[Part]:
    """The networks of a model, one for every grid of energies and of up-samplers."""
    energy, upsampler = model.energy, model.upsampler
    for number, size in enumerate(model.grids):
        settings: tuple[object, ...] = (energy.kind, energy.readout, energy.activation, energy.filters)
        yield Part(f"energy of {size} px", "energies", number, (size,), settings)
    for number, (size, before) in enumerate(zip(model.grids, [0, *model.grids], strict=False)):
        settings = (upsampler.kind, upsampler.base, upsampler.norm, model.chain_init if number == 0 else "")
        title = f"up-sampler from {before} to {size} px" if before else f"up-sampler to {size} px"
        yield Part(title, "upsamplers", number, (before, size), settings)


def _of_part(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"grids.{number}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _misfit(part: Part, other: Part | None, module: nn.Module, state: dict[str, Tensor]) -> str:
    """Why a part cannot have its counterpart's weights; empty where it can."""
    if other is None:
        return "the source has none"
    if part.settings != other.settings:
        pairs = zip(other.settings, part.settings, strict=True)
        return ", ".join(f"{one} there, {two} here" for one, two in pairs if one != two)
    own = module.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        return f"only one of the two has {name}"
    shapes = [(name, list(state[name].shape), list(value.shape)) for name, value in own.items()]
    return next((f"{name} is {one} there, {two} here" for name, one, two in shapes if one != two), "")
