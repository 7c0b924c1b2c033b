"""Table: results as plain text, for a terminal.

Invariant: the text says the same with and without colour; columns are aligned whatever the
lengths of names and figures are. A cell is the median over the rounds, [lowest-highest], and x
the ratio to the reference broker (median of the rounds' ratios).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

from .figures import metric, ordered, ratio, summarised, times
from .noise import flags
from .results import Results, Rounds

Bar = Mapping[str, tuple[float | None, float | None]]
"""What the subject must reach against the reference, by scenario: rate at least, CPU at most."""

Paint = Callable[[str, str], str]

TICK, CROSS = "✓", "✗"
CODES = {"bold": "1", "dim": "2", "good": "32", "bad": "31", "warn": "33"}


def coloured(out: TextIO) -> bool:
    """Whether `out` should get colour: a terminal, and nobody objects."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show(
    results: Results,
    out: TextIO | None = None,
    *,
    reference: str | None = None,
    bar: Bar | None = None,
) -> None:
    """Prints all of it. KeyError if there is no such reference."""
    out = out or sys.stdout
    width = shutil.get_terminal_size((120, 24)).columns if out.isatty() else 120
    print(
        render(results, reference=reference, bar=bar, colour=coloured(out), width=width), file=out
    )


def render(
    results: Results,
    *,
    reference: str | None = None,
    bar: Bar | None = None,
    colour: bool = False,
    width: int = 120,
) -> str:
    """The whole report: each scenario, each growth, the overview, then what spoils it."""
    paint = _paint(colour)
    chosen = results.reference(reference)
    parts = []
    for scenario in results.scenarios.values():
        unit = paint("dim", f"  ({scenario.unit})") if scenario.unit else ""
        head = f"{paint('bold', scenario.id)}  {scenario.title}{unit}"
        body = _rows(scenario.rounds, chosen, paint, width)
        parts.append("\n".join([head, *body, *(f"  note: {note}" for note in scenario.notes)]))
    for growth in results.growths.values():
        lines = [f"{paint('bold', growth.id)}  {growth.title}"]
        for point in growth.points:
            lines.append(f"  {growth.x_label} {point.x:g}")
            lines += _rows(point.rounds, chosen, paint, width)
        parts.append("\n".join([*lines, *(f"  note: {note}" for note in growth.notes)]))
    parts.append(overview(results, reference=reference, bar=bar, colour=colour))
    noise = [paint("warn", f"  ! {sentence}") for sentence in flags(results)]
    parts.append("\n".join(["noise:", *noise] if noise else ["noise: nothing stood out"]))
    return "\n\n".join(parts)


def overview(
    results: Results,
    *,
    reference: str | None = None,
    bar: Bar | None = None,
    colour: bool = False,
) -> str:
    """One line a scenario: each broker's rate and CPU by message as ratios to the reference. With
    a bar, the subject's are marked, and the last line says how many scenarios reach it."""
    paint = _paint(colour)
    chosen = results.reference(reference)
    subject = results.subject()
    others = [name for name in results.brokers if name != chosen]
    head = ["scenario"]
    for name in others:
        head += [f"{name} rate", "CPU"]
    table: list[list[tuple[str, str]]] = [[(text, "dim") for text in head]]
    reached = 0
    for scenario in results.scenarios.values():
        wanted = (bar or {}).get(scenario.id)
        line = [(scenario.id, "")]
        marks = []
        for name in others:
            for place, what in enumerate(("rate", "cpu_us")):
                found = ratio(scenario.rounds.get(name, []), scenario.rounds.get(chosen, []), what)
                text, style = f"x{times(found.median)}" if found else "-", ""
                limit = wanted[place] if wanted and name == subject else None
                if limit is not None:
                    good = reaches(what, found.median if found else None, limit)
                    marks.append(good)
                    text += f" {TICK if good else CROSS} ({times(limit)})"
                    style = "good" if good else "bad"
                line.append((text, style))
        reached += bool(marks) and all(marks)
        table.append(line)
    lines = [f"against {chosen}: rate (more is better), CPU by message (less is better)"]
    lines += _aligned(table, paint)
    if bar and subject and subject != chosen:
        measured = sum(name in results.scenarios for name in bar)
        lines.append(f"  {subject} reaches the bar in {reached} of {measured} scenarios")
    return "\n".join(lines)


def reaches(name: str, value: float | None, limit: float) -> bool:
    """Whether a ratio is on the good side of its limit; one that was not measured is not."""
    return value is not None and (value >= limit if metric(name).more else value <= limit)


def _rows(rounds: Rounds, reference: str, paint: Paint, width: int) -> list[str]:
    """The brokers' lines, in as many blocks of columns as the width asks for."""
    names = ordered(name for rows in rounds.values() for row in rows for name in row)
    if not names:
        return ["  nothing was measured"]
    brokers = list(rounds)
    first = ["", *brokers]
    columns: list[list[str]] = []
    for name in names:
        kind = metric(name)
        columns.append([f"{kind.label}, {kind.unit}" if kind.unit else kind.label])
        figures, spans, ratios = [], [], []
        for broker in brokers:
            found = summarised(rounds[broker], name)
            against = ratio(rounds[broker], rounds.get(reference, []), name)
            figures.append(kind.show(found.median) if found else "-")
            spans.append(f"[{kind.show(found.low)}-{kind.show(found.high)}]" if found else "")
            ratios.append(f"x{times(against.median)}" if against and broker != reference else "")
        for parts in zip(_right(figures), _left(spans), _left(ratios), strict=True):
            columns[-1].append(" ".join(parts))
    lines: list[str] = []
    while columns:
        taken = [_left(first), _left(columns.pop(0))]
        while columns and _width(taken) + 3 + max(map(len, columns[0])) + 2 <= width:
            taken.append(_left(columns.pop(0)))
        for place, cells in enumerate(zip(*taken, strict=True)):
            line = "  " + "   ".join(cells).rstrip()
            lines.append(paint("dim", line) if place == 0 else line)
    return lines


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) + 3 for column in columns) - 3


def _left(cells: Sequence[str]) -> list[str]:
    widest = max(map(len, cells), default=0)
    return [cell.ljust(widest) for cell in cells]


def _right(cells: Sequence[str]) -> list[str]:
    widest = max(map(len, cells), default=0)
    return [cell.rjust(widest) for cell in cells]


def _aligned(table: Iterable[Sequence[tuple[str, str]]], paint: Paint) -> list[str]:
    """Rows of (text, style), padded before they are painted: codes have no width."""
    rows = list(table)
    widths = [max(len(text) for text, _ in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for (text, style), width in zip(row, widths, strict=True):
            cells.append(paint(style, text) + " " * (width - len(text)))
        lines.append("  " + "   ".join(cells).rstrip())
    return lines


def _paint(colour: bool) -> Paint:
    if not colour:
        return lambda _style, text: text
    return lambda style, text: f"\033[{CODES[style]}m{text}\033[0m" if style else text
