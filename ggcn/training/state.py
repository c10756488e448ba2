"""What a checkpoint holds of a run, and whether it fits the run that opens it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggcn import files
from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.learning.learner import Learner, Metrics
from ggcn.run import code_snapshot
from ggcn.sampling.sampler import WEIGHTS

log = logging.getLogger(__name__)

FORMAT = 2
"""of the files in a checkpoint; 2: engines save in one form, which all of them open"""


@dataclass(frozen=True)
class State:
    """The parts of a run that change with its steps; the data's position is the step itself."""

    config: Config
    lanes: Lanes
    learner: Learner
    device: torch.device

    def facts(self, data: str) -> dict[str, Any]:
        """What meta.json says of the run besides its files; `data` is the hash of the shards."""
        return {
            "world": self.lanes.world,
            "format": FORMAT,
            "engine": _engine_name(self.config),
            "data": data,
            **code_snapshot.facts(),
        }

    def norms(self) -> Metrics:
        """Norm of the weights of each network that has any: the first to show an update gone wrong."""
        networks = {"energy": self.learner.energies, "upsampler": self.learner.upsamplers}
        weights = {name: [weight.detach() for weight in net.parameters()] for name, net in networks.items()}
        return {
            f"{name}_weight_norm": torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
            for name, tensors in weights.items()
            if tensors
        }

    def write(self, folder: Path) -> None:
        """Writes engines, chains and averaged weights; every rank calls it."""
        learner = self.learner
        learner.energy_engine.save(folder / "energy")
        if learner.amortization_engine:
            learner.amortization_engine.save(folder / "upsampler")
        if learner.replay_buffer:
            learner.replay_buffer.save(folder / "lanes")
        if process_group.is_main_process():
            with files.streaming_write(folder / WEIGHTS) as file:
                torch.save({name: module.state_dict() for name, module in self._averages()}, file)

    def restore(self, folder: Path, facts: dict[str, Any], data: str) -> None:
        """Reads what `write` wrote; raises UserError when it does not fit this run's shards or config.
        Which engine wrote it, on how many ranks, does not matter."""
        self._check_same(folder, facts, data)
        changes = (
            code_snapshot.changes(facts, folder.parents[1] / "code")
            if process_group.is_main_process()
            else []
        )
        if changes:
            log.warning("%s was written by other code or packages: %s", folder, "; ".join(changes))
        try:
            self._read(folder)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError that says nothing of the config
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{folder} does not fit this config, which was changed by --force ({error})"
            ) from error

    def _check_same(self, folder: Path, facts: dict[str, Any], data: str) -> None:
        if facts["data"] != data:
            raise UserError(
                f"{folder} was trained on other shards than {', '.join(self.config.data.folders())} now holds; "
                "restore the shards, or take another run=NAME"
            )
        if facts.get("format") != FORMAT:
            raise UserError(
                f"{folder} was written by another version of ggcn ({facts['versions']['ggcn']}) in a form that this "
                "one does not read; go on with that version, or take another run=NAME"
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
        learner.adopt(dict(learner.ema_upsamplers.module.named_buffers()))

    def _averages(self) -> list[tuple[str, torch.nn.Module]]:
        learner = self.learner
        return [("energies", learner.ema_energies.module), ("upsamplers", learner.ema_upsamplers.module)]


def _engine_name(config: Config) -> str:
    stage = f" zero_stage={config.engine.zero_stage}" if config.engine.kind == "deepspeed" else ""
    return config.engine.kind + stage
