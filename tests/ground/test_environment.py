"""Environment variables as users, OpenMP and SLURM write them."""

import logging

import pytest

from ggcn import environment
from ggcn.distributed import devices, process_group
from ggcn.distributed.rank_info import RankInfo


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        (" 4 ", 4),
        ("2,1", 2),
        ("2 , 1", 2),
        ("+3", 3),
        ("2(x3)", 2),
        ("2(x3),1", 2),
        ("", None),
        ("  ", None),
        ("0", None),
        ("-1", None),
        ("four", None),
        ("4.0", None),
        ("1e3", None),
        ("9" * 30, None),
        ("٣", None),
    ],
)
def test_a_number_is_read_in_every_legal_form_and_else_left_out(
    text: str, value: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert environment.integer("OMP_NUM_THREADS", minimum=1) == value
    assert devices.cpu_threads(1) >= 1


def test_what_is_left_out_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "a few")
    with caplog.at_level(logging.WARNING):
        assert environment.integer("OMP_NUM_THREADS") is None
        assert environment.integer("OMP_NUM_THREADS") is None
    (record,) = caplog.records
    assert "OMP_NUM_THREADS='a few' is not a number" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", 12.5), (" 0 ", 0.0), ("", None), ("nan", None), ("inf", None), ("soon", None)],
)
def test_seconds(text: str, value: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGCN_JOB_END", text)
    assert environment.seconds("GGCN_JOB_END") == value


def test_a_rank_starts_with_two_levels_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    try:
        process_group.init_distributed(RankInfo(), 60)
        assert torch.get_num_threads() == 2
    finally:
        process_group.shutdown()
        torch.set_num_threads(before)
