"""Stop requests by signals and deadlines."""

import time

from ggcn.launch.signals import StopSignal


def test_a_stop_is_requested_just_before_the_end() -> None:
    stop = StopSignal(deadline=time.time() + 100)
    stop.stop_lead_s = lambda: 90.0
    assert not stop.requested
    stop.stop_lead_s = lambda: 110.0
    assert stop.reason == "deadline"
