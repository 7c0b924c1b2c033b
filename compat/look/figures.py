"""Figures: numbers, times and tables for people.

Invariant: what is printed is plain text of one line a row, aligned by column; whatever a peer may
have chosen (a name, a command) cannot bring control characters to the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

FLOOR_US = 16
"""Where the first bucket of a histogram ends; see jitney.broker.meter."""

_TIMES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def count(number: float) -> str:
    """1234567 as 1.2M."""
    return _scaled(number, 1000, ("", "k", "M", "G", "T"))


def size(number: float) -> str:
    """Bytes, in powers of 1024."""
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    i = 0
    while number >= step * 0.9995 and i < len(units) - 1:
        number /= step
        i += 1
    unit = units[i]
    space = " " if len(unit) > 1 or unit == "B" else ""
    if i == 0 and number == int(number):
        return f"{int(number)}{space}{unit}"
    return f"{number:.1f}{space}{unit}" if number < 100 else f"{number:.0f}{space}{unit}"


def duration(microseconds: float) -> str:
    """Two figures are enough."""
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    seconds = microseconds / 1_000_000
    for unit, name in _TIMES:
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def percentile(buckets: Sequence[int], part: float) -> float | None:
    """A time in microseconds that `part` of what was counted did not exceed, as far as buckets that
    double can tell: taken to be spread evenly in each. None if nothing was counted."""
    total = sum(buckets)
    if not total:
        return None
    wanted = total * part
    seen = 0
    low, high = 0.0, float(FLOOR_US)
    for number in buckets:
        if number and seen + number >= wanted:
            return low + (high - low) * (wanted - seen) / number
        seen += number
        low, high = high, high * 2
    return low


def clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """`right`: the columns to be aligned there, by their heads, joined by blanks."""
    cells = [list(head), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    flush = {i for i, title in enumerate(head) if title in right.split()}
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if i in flush else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def dumped(found: Any) -> str:
    return json.dumps(found, indent=2)
