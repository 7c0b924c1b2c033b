"""Figures for people: short, aligned, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest

from jitney.compat.look import figures, rates
from jitney.compat.look.rates import Look


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (123456, "123k"), (2_500_000, "2.5M")],
)
def test_counts(number: int, text: str) -> None:
    assert figures.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1000, "1000 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert figures.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12 us"), (1500, "1.5 ms"), (2_000_000, "2 s"), (90_000_000, "1.5 min"),
     (7_200_000_000, "2 h"), (259_200_000_000, "3 d")],
)  # fmt: skip
def test_durations(number: int, text: str) -> None:
    assert figures.duration(number) == text


def test_percentiles() -> None:
    assert figures.percentile([0] * 22, 0.5) is None
    assert figures.percentile([10] + [0] * 21, 0.5) == 8.0
    # 16 to 32 us, and 32 to 64.
    buckets = [0, 50, 50, *[0] * 19]
    assert figures.percentile(buckets, 0.5) == 32.0
    assert figures.percentile(buckets, 0.25) == 24.0
    assert figures.percentile(buckets, 1.0) == 64.0


def test_tables() -> None:
    text = figures.table(("A", "N"), [["x\x1b[31m", "1"], ["yy", "200"]], "N")
    assert text == "A         N\nx?[31m    1\nyy      200"
    assert "\x1b" not in text


def record(name: str, **more: object) -> dict[str, object]:
    return {
        "name": name, "uid": 0, "pid": None, "names": [], "queued_bytes": 0, "queued_us": 0,
        "calls": 0, "owes": 0, "owes_us": 0, "dropped": 0, "monitor": False, "held": False,
        "sent": [0, 0, 0, 0, 0], "sent_bytes": 0, "received": [0, 0, 0, 0, 0],
        "received_bytes": 0, **more,
    }  # fmt: skip


def look(when: float, *records: dict[str, object]) -> Look:
    return Look(when, {str(one["name"]): one for one in records})


def found(before: Look | None, now: Look) -> list[rates.Row]:
    return rates.rows(before, now, lambda one: ("", ""))


def test_rates() -> None:
    before = look(10.0, record(":1.1", sent=[0, 10, 0, 0, 0], replies=[5] + [0] * 21))
    after = record(
        ":1.1", sent=[0, 30, 0, 0, 0], received=[0, 0, 10, 0, 0], sent_bytes=4096,
        replies=[5, 4, *[0] * 20],
    )  # fmt: skip
    (row,) = found(before, look(12.0, after))
    assert (row.messages, row.nbytes) == (15.0, 2048.0)
    assert row.p50 == 24.0
    # Nothing came since: all that there is counts.
    (row,) = found(look(12.0, after), look(13.0, after))
    assert (row.messages, row.p50) == (0.0, 14.4)
    # New ones, and numbers that go back, have no rate.
    assert found(None, look(12.0, after))[0].messages == 0
    assert found(look(12.0, after), look(13.0, record(":1.1")))[0].messages == 0


def test_order_and_filter() -> None:
    rows = found(
        look(0.0, *(record(f":1.{i}") for i in range(12))),
        look(1.0, *(record(f":1.{i}", sent=[0, i % 5, 0, 0, 0]) for i in range(12))),
    )
    busiest = [row.peer for row in rates.ordered(rows, "messages", False)]
    assert busiest[:4] == [":1.4", ":1.9", ":1.3", ":1.8"]
    assert next(row.peer for row in rates.ordered(rows, "messages", True)) == ":1.0"
    assert [row.peer for row in rates.ordered(rows, "peer", False)][-1] == ":1.11"
    assert [row.peer for row in rates.ordered(rows, "peer", False, ":1.1")] == [
        ":1.1", ":1.10", ":1.11",
    ]  # fmt: skip
    for key in rates.COLUMNS:
        assert len(rates.ordered(rows, key, False)) == 12
