"""SVG: the few shapes that charts are drawn with, and the scales that put figures on paper.

Invariant: what comes out is well-formed XML whatever texts go in, has a title and a description
for those who do not see it, and names no colour: classes do, so that the page's style sheet can
have a light and a dark one. It refers to nothing outside itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape as _escape
from xml.sax.saxutils import quoteattr

Place = tuple[float, float]

# Characters that XML cannot hold at all.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(text: str) -> str:
    """`text` for use between tags."""
    return _escape(UNWRITABLE.sub("\ufffd", text))


def quote(text: str) -> str:
    """`text` as an attribute's value, quotes included."""
    return quoteattr(UNWRITABLE.sub("\ufffd", text))


def clip(text: str, room: float, size: float) -> str:
    """`text`, shortened to about `room` when set in letters of `size`: there is nothing here to
    measure it with, so an average letter must do."""
    most = max(int(room / (size * 0.55)), 2)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


# Corners of each shape in a circle of radius 1. "ring" and "circle" are drawn as such.
SHAPES: dict[str, Sequence[Place]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "triangle": ((0, -1.1), (1.1, 0.85), (-1.1, 0.85)),
    "wedge": ((0, 1.1), (1.1, -0.85), (-1.1, -0.85)),
    "bar": ((-0.4, -1.2), (0.4, -1.2), (0.4, 1.2), (-0.4, 1.2)),
    "bow": ((-1.1, -0.9), (1.1, 0.9), (1.1, -0.9), (-1.1, 0.9)),
}


@dataclass
class Drawing:
    """A picture under construction. `ident`: its id, one of its kind on the page."""

    ident: str
    width: float
    height: float
    title: str
    desc: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """`kind`: classes. `anchor`: start, middle or end."""
        where = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
        self.parts.append(f"<text {where} class={quote(kind)}>{escape(words)}</text>")

    def line(self, start: Place, end: Place, kind: str) -> None:
        where = f'x1="{_n(start[0])}" y1="{_n(start[1])}" x2="{_n(end[0])}" y2="{_n(end[1])}"'
        self.parts.append(f"<line {where} class={quote(kind)}/>")

    def path(self, points: Iterable[Place], kind: str) -> None:
        where = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self.parts.append(f'<polyline points="{where}" class={quote(kind)}/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        where = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}"'
        self.parts.append(f"<rect {where} class={quote(kind)}/>")

    def mark(self, shape: str, at: Place, size: float, kind: str) -> None:
        """A sign of radius `size`, filled; "ring" is the hollow one."""
        x, y = at
        if shape in SHAPES:
            points = " ".join(f"{_n(x + a * size)},{_n(y + b * size)}" for a, b in SHAPES[shape])
            self.parts.append(f'<polygon points="{points}" class={quote("mark " + kind)}/>')
        else:
            where = f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(size if shape == "circle" else size - 0.4)}"'
            look = "mark" if shape == "circle" else "ring"
            self.parts.append(f"<circle {where} class={quote(f'{look} {kind}')}/>")

    def range(self, low: float, high: float, y: float, kind: str) -> None:
        """A level whisker, if it is long enough to be seen."""
        if high - low < 1:
            return
        self.line((low, y), (high, y), kind)
        for x in (low, high):
            self.line((x, y - 3), (x, y + 3), kind)

    def tip(self, words: str) -> None:
        """All until `end_tip` shows `words` when pointed at."""
        self.parts.append(f"<g><title>{escape(words)}</title>")

    def end_tip(self) -> None:
        self.parts.append("</g>")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img"'
            f" aria-labelledby={quote(f'{self.ident}-t {self.ident}-d')}>"
            f"<title id={quote(self.ident + '-t')}>{escape(self.title)}</title>"
            f"<desc id={quote(self.ident + '-d')}>{escape(self.desc)}</desc>"
            + "".join(self.parts)
            + "</svg>"
        )


@dataclass(frozen=True)
class Scale:
    """From figures `low` to `high` to places `start` to `end`; even steps, or with `log` even
    factors (then low must be above 0). Figures outside land on the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round figures within the scale, not more than `most`, though 2 if there can be."""
        choices = _log_ticks if self.log else _even_ticks
        found: list[float] = []
        for candidate in choices(self.low, self.high):
            inside = [value for value in candidate if self.low <= value <= self.high]
            if len(inside) <= most and (len(inside) > 1 or not found):
                return inside
            found = inside
        return found[:: max(math.ceil(len(found) / most), 1)]


def log_scale(
    figures: Iterable[float], start: float, end: float, *, least: float, keep: float | None = None
) -> Scale:
    """A log scale around the figures above 0 (and `keep`) with some room at both ends, that spans
    a factor of at least `least`."""
    found = [value for value in figures if value > 0]
    if keep is not None:
        found.append(keep)
    low, high = (min(found), max(found)) if found else (1.0, 1.0)
    room = max((high / low) ** 0.06, (least / (high / low)) ** 0.5, 1.03)
    return Scale(low / room, high * room, start, end, log=True)


def _log_ticks(low: float, high: float) -> Iterable[list[float]]:
    """Sets of ticks, the densest first."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    choices: list[tuple[float, ...]] = [(1, 2, 5), (1, 3), (1,)]
    if high / low < 12:
        choices = [(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 4, 5, 7), *choices]
    for steps in choices:
        yield [step * 10.0**decade for decade in decades for step in steps]
    for stride in (2, 3, 4):
        yield [10.0**decade for decade in decades if decade % stride == 0]


def _even_ticks(low: float, high: float) -> Iterable[list[float]]:
    span = high - low or 1.0
    size = 10.0 ** math.floor(math.log10(span))
    for step in (size / 5, size / 2, size, size * 2, size * 5):
        first = math.ceil(low / step - 1e-9)
        yield [
            (first + place) * step for place in range(int((high - first * step) / step + 1e-9) + 1)
        ]


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as can be with `gap` between them, within low and high
    (if there is room at all), in the order of `wanted`."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    found = [0.0] * len(wanted)
    floor = low
    for place in order:
        found[place] = floor = max(wanted[place], floor)
        floor += gap
    ceiling = high
    for place in reversed(order):
        found[place] = ceiling = min(found[place], ceiling)
        ceiling -= gap
    return found


def lanes(spans: Sequence[Place], gap: float) -> list[int]:
    """For each span (start, end) a lane, the lowest in which it is `gap` away from all others."""
    found = [0] * len(spans)
    ends: list[float] = []
    for place in sorted(range(len(spans)), key=lambda place: spans[place]):
        start, end = spans[place]
        lane = next((lane for lane, last in enumerate(ends) if last + gap <= start), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        found[place] = lane
    return found


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
