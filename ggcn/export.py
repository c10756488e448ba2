"""A trained model in one file: averaged weights, with the config in the file's metadata."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ggcn import __version__, files
from ggcn.compose import parse, public
from ggcn.errors import UserError
from ggcn.models import build
from ggcn.precision import set_numeric_flags
from ggcn.sampling import sampler
from ggcn.sampling.sampler import Sampler
from ggcn.training import checkpoint

FORMAT = "ggcn 1"
"""of the file, as its metadata say"""


def load(path: str | Path, step: int | None = None, device: str | torch.device = "cpu") -> Sampler:
    """The sampler of a run directory (its newest whole checkpoint, or the one at `step`) or of an exported file.

    Raises UserError when `path` is neither, or has no such checkpoint.
    """
    path = Path(path)
    return from_file(path, device) if path.is_file() else sampler.load(path, step, device)


def export(run: Path, out: Path, step: int | None = None) -> Sampler:
    """Writes the averaged weights of a run to `out`, and the public part of its config to the same name with .yaml.

    Raises UserError when `run` is no run directory or has no such checkpoint.
    """
    trained = sampler.load(run, step)
    assert trained.folder is not None
    text = public(trained.config)
    step = checkpoint.meta(trained.folder)["step"]
    facts = {"format": FORMAT, "config": text, "step": str(step), "ggcn": __version__}
    with files.whole(out) as temporary:
        save_file(weights(trained), temporary, facts)
    files.write_text(out.with_suffix(".yaml"), text)
    return trained


def weights(trained: Sampler) -> dict[str, Tensor]:
    """Every tensor of a sampler by side and name, on the CPU."""
    sides = {"energies": trained.energies, "upsamplers": trained.upsamplers}
    return {
        f"{side}.{name}": value.detach().cpu().contiguous().clone()
        for side, module in sides.items()
        for name, value in module.state_dict().items()
    }


def from_file(path: Path, device: str | torch.device = "cpu") -> Sampler:
    """The sampler that `export` wrote; raises UserError when the file is something else. Sets numeric flags."""
    set_numeric_flags()
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); export it again") from None
    if facts.get("format") != FORMAT or "config" not in facts:
        raise UserError(f"{path} was not written by tools/export.py, or by another version of it")
    config = parse(facts["config"], path)
    config.data.allow_pipe = False  # a file that was sent to somebody must not allow itself to run commands
    energies, upsamplers = build(config)
    try:
        energies.load_state_dict(_side(tensors, "energies."))
        upsamplers.load_state_dict(_side(tensors, "upsamplers."))
    except RuntimeError:
        raise UserError(
            f"the weights in {path} are of another model than its config; export it again"
        ) from None
    return Sampler(config, energies.to(device), upsamplers.to(device), path)


def _side(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
