"""What a rank says and leaves when memory runs out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.run.metric_logger import PhaseTimer

log = logging.getLogger(__name__)

HISTORY = 100_000
"""allocations of which profile.memory_history keeps the stacks"""


@contextmanager
def explained(
    config: Config, timer: PhaseTimer, device: torch.device, folder: Path, rank: int
) -> Iterator[None]:
    """Turns an allocation that fails into a UserError that names the keys that help, after writing a snapshot of the
    GPU's memory to RUN/profile/memory_rank_NNNN.pickle, which https://pytorch.org/memory_viz shows."""
    if config.profile.memory_history and device.type == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=HISTORY)
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        on_cpu = "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        written = None if on_cpu else snapshot(folder / f"memory_rank_{rank:04d}.pickle")
        log.error("out of memory", exc_info=error)
        raise UserError(sentence(config, timer.current, str(error), written)) from error


def snapshot(path: Path) -> Path | None:
    """Writes what the GPU's memory holds; returns the path, None where that failed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
        return path
    except Exception:  # the error that led here is the one that matters
        log.warning("the snapshot of the GPU's memory was not written", exc_info=True)
        return None


def sentence(config: Config, phase: str, message: str, written: Path | None) -> str:
    """What the user can do, most helpful first: it depends on the phase of a step in which memory ran out."""
    chains = f"model.chain.micro_batch (now {config.model.chain.micro_batch or 'all chains'}) to fewer"
    accumulation = (
        f"train.accumulation={config.train.accumulation} to a larger divisor of the lanes of a rank"
    )
    first, second = (chains, accumulation) if phase == "sample" else (accumulation, chains)
    knobs = [f"set {first}", f"set {second}"]
    if config.engine.zero_stage == 0 and config.engine.kind == "deepspeed":
        knobs.append("engine.zero_stage=1")
    if config.engine.precision == "fp32":
        knobs.append("engine.precision=bf16")
    knobs.append("more ranks, or a smaller train.batch in a new run")
    where = f" in the phase {phase} of a step" if phase else ""
    seen = f"; what held the memory: {written}, for https://pytorch.org/memory_viz" if written else ""
    short = message.splitlines()[0].split(". ")[0]
    return f"memory ran out{where} ({short}); {', or '.join(knobs)}{seen}"
