"""Trajectories along the chains that Sampler.draw runs."""

import torch
from tiny_model import tiny_sampler

from ggcn.applications.trajectory import snapshot_steps, trajectory


def test_a_trajectory_goes_from_the_chain_start_to_the_sample() -> None:
    sampler = tiny_sampler("model.chain.steps=[3,6]")
    drawn = sampler.draw(0, 5, seed=7)
    stops = snapshot_steps(6, 4)
    assert stops == [0, 2, 4, 6]
    states = trajectory(sampler, range(5), 7, stops)
    assert states.shape == (5, 4, 3, 16, 16)
    assert torch.allclose(states[:, 0], drawn.starts[-1][:5], atol=1e-6)
    assert torch.allclose(states[:, -1], drawn.ends[-1][:5], atol=1e-6)
    assert torch.allclose(trajectory(sampler, range(4, 5), 7, [6])[0, 0], states[4, -1], atol=1e-5)
    longer = trajectory(sampler, range(5), 7, [6, 12])
    assert torch.allclose(longer[:, 0], states[:, -1], atol=1e-6)  # the chain continues from there
    assert not torch.allclose(longer[:, 1], longer[:, 0], atol=1e-4)


def test_snapshots_are_evenly_spaced_and_include_the_last_step() -> None:
    assert snapshot_steps(8, 3) == [0, 4, 8]
    assert snapshot_steps(2, 8) == [0, 1, 2]
    assert snapshot_steps(5, 1) == [0, 5]
