"""What ranks do in tests of checkpoints that are written in the background."""

import time
from pathlib import Path

import torch

from ggcn.config.compose import compose
from ggcn.config.schema import CheckpointConfig
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Lanes
from ggcn.learning.learner import Learner
from ggcn.run import background_save
from ggcn.run.checkpoint_saver import Checkpoints
from ggcn.training.state import State


def save_with(rank: int, world: int, root: Path, failing: int | None) -> str:
    """Saves step 1 and, with the rank `failing` unable to write, step 2, while all ranks train on; returns the error of
    this rank."""
    write_file = background_save.write_file

    def fail(path: Path, value: object) -> dict:
        raise OSError(28, "No space left on device", str(path))

    def contents() -> dict:
        return {f"lanes/lane_{rank:05d}.pt": torch.full((1000,), float(rank))}

    checkpoints = Checkpoints(root, CheckpointConfig(max_overhead=0.0))
    checkpoints.save(1, contents, {"world": world})
    checkpoints.finish()
    background_save.write_file = fail if rank == failing else write_file
    try:
        checkpoints.save(2, contents, {"world": world})
        for _ in range(50):
            process_group.all_reduce_mean(torch.ones(1000))  # of a step
        end = time.monotonic() + 20
        while checkpoints.running and time.monotonic() < end:
            checkpoints.poll()
            time.sleep(0.01)
        return "hangs" if checkpoints.running else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        background_save.write_file = write_file
        process_group.barrier()


def changed_by_a_step(rank: int, world: int, overrides: list[str]) -> bool:
    """Whether what is to be saved changes while training goes on."""
    config = compose(overrides)
    lanes = Lanes(config.lanes, rank, world, config.train.batch // config.lanes)
    learner = Learner(config, lanes, torch.device("cpu"))
    state = State(config, lanes, learner, torch.device("cpu"))
    _step(learner, 0)
    contents = state.contents()
    before = _tensors(contents)
    before = {name: value.clone() for name, value in before.items()}
    _step(learner, 1)
    assert not all(torch.equal(value, before[name]) for name, value in _tensors(state.contents()).items()) or rank
    after = _tensors(contents)
    return not all(torch.equal(value, after[name]) for name, value in before.items())


def _step(learner: Learner, step: int) -> None:
    size, count = learner.config.model.grids[-1], learner.lanes.samples
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    data = learner.prepare_data(images, step)
    particles = learner.sample(step, data)
    learner.learn_energy(data, particles, step)
    learner.learn_upsamplers(particles, step)
    learner.update_averages(step, particles)


def _tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        return {key: each for part in value for key, each in _tensors(value[part], f"{name}/{part}").items()}
    return {}
