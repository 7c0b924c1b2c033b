"""The terminal's table: aligned, the same with and without colour, and marked by the bar."""

from __future__ import annotations

import io
import re

import pytest

from jitney.bench.results import Results
from jitney.bench.table import coloured, overview, render, show

BAR = {"call1": (1.1, 0.9), "call64": (1.1, 0.1), "nowhere": (1.0, 1.0)}
CODE = re.compile(r"\x1b\[\d+m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_changes_nothing_but_colour(results: Results) -> None:
    plain = render(results, bar=BAR)
    painted = render(results, bar=BAR, colour=True)
    assert "\x1b" not in plain
    assert "\x1b" in painted
    assert CODE.sub("", painted) == plain


def test_who_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured(Terminal())
    assert not coloured(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(Terminal())


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_aligned_and_within_the_width(results: Results, width: int) -> None:
    text = render(results, width=width)
    scenario = text.partition("\n\n")[0].splitlines()
    if width > 60:
        assert max(map(len, scenario)) <= width
    heads = [line for line in scenario if re.match(r"   +\S", line)]
    assert len(heads) == 1 if width == 300 else len(heads) > 1
    # Each column ends in all rows where the next begins.
    rows = [line for line in scenario if line.startswith("  jitney pure")]
    assert len(rows) == len(heads)
    for head, row in zip(heads, rows, strict=True):
        for column in re.finditer(r"   (?=\S)", head):
            if column.start() > 3:
                assert row[column.start() : column.end()] == "   "


def test_overview_by_the_bar(results: Results) -> None:
    lines = overview(results, bar=BAR).splitlines()
    (call1,) = [line for line in lines if line.startswith("  call1 ")]
    (call64,) = [line for line in lines if line.startswith("  call64 ")]
    assert call1.count("✓") == 2
    assert (call64.count("✓"), call64.count("✗")) == (1, 1)
    assert lines[-1] == "  jitney reaches the bar in 1 of 2 scenarios"
    assert "✓" not in overview(results)


def test_what_was_not_measured_reaches_no_bar(results: Results) -> None:
    line = overview(results, bar={"idle": (1.0, None)}).splitlines()[-2:]
    assert line[-1] == "  jitney reaches the bar in 0 of 1 scenarios"


def test_reference(results: Results) -> None:
    assert "against dbus-daemon" in overview(results, reference="dbus-daemon")
    with pytest.raises(KeyError):
        overview(results, reference="nobody")


def test_show_prints(results: Results) -> None:
    out = io.StringIO()
    show(results, out, bar=BAR)
    assert "noise:" in out.getvalue()
    assert render(Results())
