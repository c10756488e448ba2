"""A trained model in one file: averaged weights, with the config in the file's metadata."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ggcn import __version__, files
from ggcn.applications import hub
from ggcn.config.compose import parse, public
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.precision import set_numeric_flags
from ggcn.sampling import sampler
from ggcn.sampling.sampler import Sampler

FORMAT = "ggcn 1"
"""the file format, as written to the metadata"""
MODEL = hub.MODEL
"""the name of the file in a folder for others"""


def load(path: str | Path, step: int | None = None, device: str | torch.device = "cpu") -> Sampler:
    """The sampler of a run directory (its newest valid checkpoint, or the one at `step`), of an exported file, of a
    folder that `export --card` wrote, or of such a folder on the Hugging Face hub, as hf://user/name.

    Raises UserError when `path` is none of these, is damaged, or has no such checkpoint.
    """
    if hub.is_address(str(path)):
        return load_file(hub.download(str(path)), device, step)
    path = Path(path).expanduser()
    if (path / MODEL).is_file() and not (path / "config.yaml").exists():
        path = path / MODEL
    return load_file(path, device, step) if path.is_file() else sampler.load(path, step, device)


def export(run: Path, out: Path, step: int | None = None) -> Sampler:
    """Writes the averaged weights of a run to `out`, and the public part of its config to the same name with .yaml.

    Raises UserError when `run` is no run directory or has no such checkpoint.
    """
    trained = sampler.load(run, step)
    write_file(trained, out)
    files.write_text(out.with_suffix(".yaml"), public(trained.config))
    return trained


def write_file(trained: Sampler, out: Path) -> None:
    """Writes the weights of a sampler that was loaded from a run, with the public part of its config as metadata."""
    text, tensors = public(trained.config), weights(trained)
    metadata = {"format": FORMAT, "config": text, "step": str(trained.metadata["step"]), "ggcn": __version__}
    if "sampling" in trained.metadata:
        metadata["sampling"] = json.dumps(trained.metadata["sampling"])
    with files.atomic_write(out) as temporary:
        # save_file would make a file that only its owner may read, and hides the operating system's errors
        temporary.write_bytes(save(tensors, metadata | {"sha256": digest(tensors)}))


def weights(trained: Sampler) -> dict[str, Tensor]:
    """Every tensor of a sampler by network and name, on the CPU."""
    networks = {"energies": trained.energies, "upsamplers": trained.upsamplers}
    return {
        f"{network}.{name}": value.detach().cpu().contiguous().clone()
        for network, module in networks.items()
        for name, value in module.state_dict().items()
    }


def digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of all tensors' names, types, shapes and bytes."""
    sha256 = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def load_file(path: Path, device: str | torch.device = "cpu", step: int | None = None) -> Sampler:
    """The sampler that `export` wrote. Sets this process's numeric flags.

    Raises UserError when it is another kind of file, damaged, or not of `step`.
    """
    set_numeric_flags()
    config, networks, metadata = read_file(path)
    if step is not None and metadata.get("step") != str(step):
        raise UserError(f"{path} holds the weights of step {metadata.get('step')}, not of {step}")
    return sampler.build_sampler(config, networks, path, device, _parse_sampling(metadata, path))


def read_file(path: Path) -> tuple[Config, dict[str, dict[str, Tensor]], dict[str, str]]:
    """The config, the tensors of "energies" and "upsamplers" by name, and the metadata of an exported file.

    Raises UserError when it is another kind of file, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); export it again") from None
    known = metadata.get("format") == FORMAT and metadata.get("step", "").isdecimal()
    if not known or "config" not in metadata:
        raise UserError(f"{path} was not written by tools/export.py, or by another version of it")
    if "sha256" in metadata and metadata["sha256"] != digest(tensors):
        raise UserError(f"{path} is damaged: its weights are not those that were exported; export it again")
    config = parse(metadata["config"], path)
    config.data.allow_pipe = False  # a file from someone else must not allow itself to run commands
    networks = {network: _strip_prefix(tensors, f"{network}.") for network in ("energies", "upsamplers")}
    return config, networks, metadata


def _parse_sampling(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """The file's metadata with the sampling settings as in meta.json, where there are any."""
    try:
        return (
            {**metadata, "sampling": json.loads(metadata["sampling"])}
            if "sampling" in metadata
            else {**metadata}
        )
    except (ValueError, RecursionError):
        raise UserError(f"the sampling settings in {path} cannot be read; export it again") from None


def _strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
