"""A trained model in one file: averaged weights, with the config in the file's metadata."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ggcn import __version__, files
from ggcn.config.compose import parse, public
from ggcn.errors import UserError
from ggcn.precision import set_numeric_flags
from ggcn.sampling import sampler
from ggcn.sampling.sampler import Sampler

FORMAT = "ggcn 1"
"""of the file, as its metadata say"""


def load(path: str | Path, step: int | None = None, device: str | torch.device = "cpu") -> Sampler:
    """The sampler of a run directory (its newest whole checkpoint, or the one at `step`) or of an exported file.

    Raises UserError when `path` is neither, is damaged, or has no such checkpoint.
    """
    path = Path(path).expanduser()
    return from_file(path, device, step) if path.is_file() else sampler.load(path, step, device)


def export(run: Path, out: Path, step: int | None = None) -> Sampler:
    """Writes the averaged weights of a run to `out`, and the public part of its config to the same name with .yaml.

    Raises UserError when `run` is no run directory or has no such checkpoint.
    """
    trained = sampler.load(run, step)
    text, tensors = public(trained.config), weights(trained)
    facts = {"format": FORMAT, "config": text, "step": str(trained.facts["step"]), "ggcn": __version__}
    with files.atomic_write(out) as temporary:
        # bytes, since save_file makes a file that nobody else may read, and hides what the system refuses
        temporary.write_bytes(save(tensors, facts | {"sha256": digest(tensors)}))
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


def digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of all tensors' names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def from_file(path: Path, device: str | torch.device = "cpu", step: int | None = None) -> Sampler:
    """The sampler that `export` wrote. Sets this process's numeric flags.

    Raises UserError when the file is something else, damaged, or not of `step`.
    """
    set_numeric_flags()
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); export it again") from None
    if facts.get("format") != FORMAT or not {"config", "step"} <= facts.keys():
        raise UserError(f"{path} is no exported model of this version of ggcn")
    if "sha256" in facts and facts["sha256"] != digest(tensors):
        raise UserError(f"{path} is damaged: its weights are not those that were exported; export it again")
    if step is not None and facts.get("step") != str(step):
        raise UserError(f"{path} holds the weights of step {facts.get('step')} alone, and not of {step}")
    config = parse(facts["config"], path)
    config.data.allow_pipe = False  # a file that was sent to somebody must not allow itself to run commands
    sides = {side: _side(tensors, f"{side}.") for side in ("energies", "upsamplers")}
    return sampler.assembled(config, sides, path, device, facts)


def _side(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
