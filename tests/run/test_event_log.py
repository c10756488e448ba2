"""The event log of a run."""

from pathlib import Path

from ggcn.run import event_log
from ggcn.run.directory import RunDir


def test_an_event_whose_writer_was_killed_costs_no_other(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for event in ("submit", "start"):
        event_log.add(run, event)
    path = tmp_path / event_log.NAME
    path.write_bytes(path.read_bytes()[:-20])
    for event in ("stop", "end"):
        event_log.add(run, event)
    assert [event["event"] for event in event_log.read(run)] == ["submit", "stop", "end"]
