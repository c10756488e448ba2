"""The state of a run that a checkpoint holds, and whether a checkpoint fits the run that restores it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.engine.portable import STATE
from ggcn.errors import UserError
from ggcn.learning.learner import Learner, Metrics
from ggcn.run import code_snapshot
from ggcn.sampling.sampler import WEIGHTS

log = logging.getLogger(__name__)

FORMAT = 3
"""version of a checkpoint's files; 2: all engines save in one format; 3: new names of layers and metadata"""


COPIES = 4
"""float32 values of a checkpoint for each weight: itself, Adam's two moments, its average"""


@dataclass(frozen=True)
class State:
    """The parts of a run that change from step to step; the position in the data is the step itself."""

    config: Config
    lanes: Lanes
    learner: Learner
    device: torch.device

    def metadata(self, data: str) -> dict[str, Any]:
        """The run's entries in meta.json; `data` is the hash of the shards."""
        return {
            "world": self.lanes.world,
            "format": FORMAT,
            "engine": _engine_name(self.config),
            "data": data,
            **code_snapshot.facts(),
        }

    def weight_norms(self) -> Metrics:
        """The norm of each network's weights, where it has any: the first metric to show a bad update."""
        networks = {"energy": self.learner.energies, "upsampler": self.learner.upsamplers}
        weights = {name: [weight.detach() for weight in net.parameters()] for name, net in networks.items()}
        return {
            f"{name}_weight_norm": torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
            for name, tensors in weights.items()
            if tensors
        }

    def contents(self, copy: bool = True) -> dict[str, Any]:
        """{path in a checkpoint: value} of what this rank has to save: engines, replay buffer and averaged weights, in
        host memory. Every rank calls it. Without `copy` values may change with the next step."""
        learner = self.learner
        engines = {"energy": learner.energy_engine, "upsampler": learner.amortization_engine}
        states = {f"{name}/{STATE}": engine.state(copy) for name, engine in engines.items() if engine}
        lanes = learner.replay_buffer.state() if learner.replay_buffer else {}
        contents: dict[str, Any] = {f"lanes/{name}": value for name, value in lanes.items()}
        if process_group.is_main_process():
            averages = {name: _on_host(module.state_dict(), copy) for name, module in self._averages()}
            contents |= {**states, WEIGHTS: averages}
        return contents

    def bytes(self) -> int:
        """The size of what `contents` copies on this rank."""
        learner, size = self.learner, 0
        if process_group.is_main_process():
            networks = (learner.energies, learner.upsamplers)
            weights = sum(weight.numel() for network in networks for weight in network.parameters())
            buffers = sum(buffer.nbytes for network in networks for buffer in network.buffers())
            size += COPIES * 4 * weights + 2 * buffers
        if learner.replay_buffer:
            size += learner.replay_buffer.chains.nbytes
        return size

    def restore(self, folder: Path, metadata: dict[str, Any], data: str) -> None:
        """Reads a checkpoint that holds what `contents` returned, with any engine on any number of ranks. Raises
        UserError when it does not fit this run's shards or config."""
        self._check_compatible(folder, metadata, data)
        changes = (
            code_snapshot.changes(metadata, folder.parents[1] / "code")
            if process_group.is_main_process()
            else []
        )
        if changes:
            log.warning("%s was written by other code or packages: %s", folder, "; ".join(changes))
        try:
            self._read(folder)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError that says nothing about the config
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{folder} does not fit this config, which was changed by --force ({error})"
            ) from error

    def _check_compatible(self, folder: Path, metadata: dict[str, Any], data: str) -> None:
        if metadata["data"] != data:
            raise UserError(
                f"{folder} was trained on other shards than {', '.join(self.config.data.folders())} now holds; "
                "restore the shards, or choose another run=NAME"
            )
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{folder} was written by another version of ggcn ({metadata['versions']['ggcn']}) in a format that "
                "this one does not read; continue with that version, or choose another run=NAME"
            )

    def _read(self, folder: Path) -> None:
        learner = self.learner
        learner.energy_engine.load(folder / "energy")
        if learner.amortization_engine:
            learner.amortization_engine.load(folder / "upsampler")
        if learner.replay_buffer:
            learner.replay_buffer.load(folder / "lanes")
        weights = torch.load(folder / WEIGHTS, map_location=self.device, weights_only=True)
        for name, module in self._averages():
            module.load_state_dict(weights[name])
        learner.load_linear_maps(dict(learner.ema_upsamplers.module.named_buffers()))

    def _averages(self) -> list[tuple[str, torch.nn.Module]]:
        learner = self.learner
        return [("energies", learner.ema_energies.module), ("upsamplers", learner.ema_upsamplers.module)]


def _on_host(state: dict[str, Any], copy: bool) -> dict[str, Any]:
    """A state_dict with its tensors in host memory."""
    for name, value in state.items():
        state[name] = value.to("cpu", copy=copy)
    return state


def _engine_name(config: Config) -> str:
    stage = f" zero_stage={config.engine.zero_stage}" if config.engine.kind == "deepspeed" else ""
    return config.engine.kind + stage
