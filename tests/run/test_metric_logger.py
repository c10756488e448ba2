"""What a logged line says of the steps since the one before."""

import time

import pytest
import torch

from ggcn.run.metric_logger import PhaseTimer


def test_seconds_are_means_of_all_steps_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    timer = PhaseTimer(torch.device("cpu"))
    for took in (1.0, 1.0, 4.0):  # every third is slow, and it is the one that is logged
        with timer.phase("step"):
            clock += took
    assert timer.seconds == {"seconds/step": 4.0}
    assert timer.pop_means() == {"seconds/step": 2.0}
    with timer.phase("step"):
        clock += 1.0
    assert timer.pop_means() == {"seconds/step": 1.0}
