"""Statistics against figures worked out by hand, and laws that hold for any figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitney.bench.figures import METRICS, Summary, metric, middle, ordered, ratio, summary, times

figures = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=9)


def rows(*values: float, name: str = "rate") -> list[dict[str, float]]:
    return [{name: value} for value in values]


def test_summary_by_hand() -> None:
    found = summary([30, 10, 20, 14])
    assert found == Summary(17, 10, 30)
    assert found.spread == pytest.approx(20 / 17)
    assert summary([5]).spread == 0
    assert Summary(0, 0, 1).spread == math.inf
    assert Summary(0, 0, 0).spread == 0
    with pytest.raises(ValueError, match="no figures"):
        summary([])


def test_ratio_is_taken_round_by_round() -> None:
    # The machine was half as fast in the second round, for both of them.
    assert ratio(rows(120, 60, 130), rows(100, 50, 100), "rate") == Summary(1.2, 1.2, 1.3)


def test_next_to_nothing_is_not_many_times_nothing() -> None:
    few, none = rows(0.0002, 0.0, name="switches"), rows(0.0001, 0.0, name="switches")
    assert ratio(few, none, "switches") == Summary(1, 1, 1)
    assert ratio(rows(0.03, name="switches"), none, "switches") == Summary(3, 3, 3)


def test_ratio_leaves_out_pairs_that_lack_a_side() -> None:
    a = [{"rate": 1.0}, {}, {"rate": 3.0}, {"rate": 8.0}, {"rate": 9.0}]
    b = [{"rate": 2.0}, {"rate": 1.0}, {}, {"rate": 0.0}]
    assert ratio(a, b, "rate") == Summary(0.5, 0.5, 0.5)
    assert ratio(a, b, "cpu_us") is None
    assert ratio([], b, "rate") is None


@given(figures)
def test_summary_laws(values: list[float]) -> None:
    found = summary(values)
    assert min(values) == found.low <= found.median <= found.high == max(values)
    assert summary(reversed(values)) == found
    assert found.spread >= 0


@given(figures, st.floats(0.01, 100))
def test_ratio_sees_a_factor_whatever_the_machine_did(values: list[float], factor: float) -> None:
    found = ratio(rows(*(value * factor for value in values)), rows(*values), "rate")
    assert found is not None
    for one in (found.median, found.low, found.high):
        assert one == pytest.approx(factor)


@given(figures, figures)
def test_ratio_the_other_way_round_is_its_inverse(one: list[float], two: list[float]) -> None:
    there, back = ratio(rows(*one), rows(*two), "rate"), ratio(rows(*two), rows(*one), "rate")
    assert there is not None
    assert back is not None
    assert there.low * back.high == pytest.approx(1)
    assert there.high * back.low == pytest.approx(1)


def test_geometric_mean() -> None:
    assert middle([2, 0.5]) == pytest.approx(1)
    assert middle([]) is None
    assert middle([1, 0]) is None


def test_metrics() -> None:
    assert [name for name, kind in METRICS.items() if kind.more] == ["rate"]
    assert ordered(["odd", "cpu_us", "rate", "cpu_us"]) == ["rate", "cpu_us", "odd"]
    assert metric("odd_thing").label == "odd thing"
    assert METRICS["rate"].show(31234.5) == "31,234"
    assert [METRICS["cpu_us"].brief(value) for value in (1.234, 31234, 2.5e6, 3e9)] == [
        "1.23", "31.2k", "2.5M", "3.0G",
    ]  # fmt: skip
    assert [times(value) for value in (0.056, 1.239, 16.66, 123.4)] == [
        "0.06", "1.24", "16.7", "123",
    ]  # fmt: skip
