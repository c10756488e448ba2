"""Axes and lines of the report's charts."""

import pytest

from ggcn.report.axes import linear, logarithmic, number, scale, symlog, tick_texts
from ggcn.report.charts import Chart, Line, thin


def test_axes_have_few_round_ticks() -> None:
    assert linear(0, 97, 5).ticks == [0, 20, 40, 60, 80]
    assert linear(-0.3, 0.2).ticks == pytest.approx([-0.3, -0.2, -0.1, 0, 0.1, 0.2])
    assert linear(5, 5).position(5) == pytest.approx(0.5)
    assert logarithmic(2e-5, 3e2).ticks == pytest.approx([1e-3, 1e-1, 1e1])
    assert logarithmic(0.9, 60).ticks == pytest.approx([1, 2, 5, 10, 20, 50])
    wide = symlog(-50, 400, 1)
    assert 0 in wide.ticks
    assert all(-50 <= tick <= 400 for tick in wide.ticks)
    assert wide.position(0) < wide.position(1) < wide.position(400) == 1


def test_the_axis_is_linear_or_logarithmic_as_the_values_need() -> None:
    assert scale([1e-4, 1.0]).position(1e-2) == pytest.approx(0.5)  # logarithmic
    assert scale([1.0, 3.0]).position(2.0) == 0.5  # linear
    gap = scale([0.1, -0.1] * 50 + [45.0])
    assert gap.position(0.1) - gap.position(-0.1) > 0.1  # a burst leaves room for the rest
    assert scale([0.0, 0.0]).position(0.0) == pytest.approx(0.5)


def test_thinning_keeps_the_extremes() -> None:
    points = [(float(x), float(x == 4321) - float(x == 777)) for x in range(10_000)]
    few = thin(points, 240)
    assert len(few) <= 240
    assert (4321.0, 1.0) in few
    assert (777.0, -1.0) in few
    assert [x for x, _ in few] == sorted(x for x, _ in few)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0, 0.05, 12_000, 3e6, 2e-5, -1500)] == [
        "0",
        "0.05",
        "12k",
        "3M",
        "2e-05",
        "-1.5k",
    ]


def test_neighbouring_ticks_have_different_texts() -> None:
    assert tick_texts([13.52, 13.54, 13.56]) == ["13.52", "13.54", "13.56"]
    assert tick_texts([0, 0.5, 1]) == ["0", "0.5", "1"]


def test_there_is_no_chart_without_a_finite_value() -> None:
    assert Chart("x", [Line("a", [(0, float("nan"))])]).html() == ""
    assert "<circle" in Chart("x", [Line("a", [(5, 1.0)])]).html()
