"""Charts: results as drawings.

Invariant: a broker has the same sign (shape and colour) in every chart of a page, and is named
wherever it is drawn; no chart says anything by colour alone. Each chart's description holds its
figures in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .figures import LATENCIES, Summary, metric, ratio, summarised, times
from .results import Growth, Results
from .svg import Drawing, Scale, apart, clip, lanes, log_scale
from .table import CROSS, TICK, Bar, reaches

KNOWN = {"dbus-broker": ("square", 2), "dbus-daemon": ("diamond", 3), "busd": ("triangle", 4)}
OURS = (("circle", 0), ("ring", 1))
TORN, FAR = 8, 6
OTHERS = (("wedge", 5), ("bar", 6), ("bow", 7))

BY, TO, NONE = "\u00d7", "\u2013", "\u2013"

Signs = dict[str, "Sign"]


@dataclass(frozen=True)
class Sign:
    """How a broker looks: a shape, and the class that gives the colour."""

    shape: str
    kind: str


def signs(brokers: Iterable[str]) -> Signs:
    """Well-known brokers look the same on every page; jitney's builds are relatives."""
    found = {}
    ours, others = iter(OURS), 0
    for name in brokers:
        look = KNOWN.get(name)
        if look is None and name.startswith("jitney"):
            look = next(ours, None)
        if look is None:
            look = OTHERS[others % len(OTHERS)]
            others += 1
        found[name] = Sign(look[0], f"c{look[1]}")
    return found


def sign_alone(sign: Sign) -> str:
    """A small picture of the sign, to stand beside the broker's name."""
    drawing = Drawing("", 14, 14, "", "")
    drawing.mark(sign.shape, (7, 7), 4.6, sign.kind)
    return f'<svg class="sign" viewBox="0 0 14 14" aria-hidden="true">{drawing.parts[0]}</svg>'


def overview(
    ident: str, results: Results, name: str, reference: str, look: Signs, bar: Bar | None = None
) -> str:
    """A row a scenario, a sign a broker: its ratio to the reference, on a log axis. What is FAR
    off is put at the edge, with an arrow and its figure. "" if there is nothing to compare."""
    width, side, number = 420.0, 10.0, 58.0
    kind = metric(name)
    subject = results.subject()
    rows = []
    for scenario in results.scenarios.values():
        found = {
            broker: against
            for broker in results.brokers
            if broker != reference
            and (
                against := ratio(
                    scenario.rounds.get(broker, []), scenario.rounds.get(reference, []), name
                )
            )
        }
        if found:
            limit = (bar or {}).get(scenario.id, (None, None))[0 if name == "rate" else 1]
            rows.append((scenario.title, found, limit if subject != reference else None))
    figures = [value for _, found, limit in rows for value in _all(found.values())]
    figures += [limit for _, _, limit in rows if limit]
    if not rows or max(figures) <= 0:
        return ""
    near = [value for value in figures if 1 / FAR < value < FAR]
    scale = log_scale(near, side, width - number - side, least=3, keep=1.0)
    one = scale.at(1.0)
    drawing = Drawing(
        ident,
        width,
        0,
        f"{kind.label} against {reference}",
        _said((title, found) for title, found, _ in rows) + ".",
    )
    top, y = 34.0, 34.0
    marks: list[tuple[float, str, dict[str, Summary], float | None, dict[str, int], int]] = []
    for title, found, limit in rows:
        spans = []
        for was in found.values():
            room = 58 if was.median > scale.high else 5, 58 if was.median < scale.low else 5
            spans.append((scale.at(was.low) - room[0], scale.at(was.high) + room[1]))
        lane = dict(zip(found, lanes(spans, 1), strict=True))
        deep = max(lane.values()) + 1
        marks.append((y, title, found, limit, lane, deep))
        y += 26 + 13 * deep
    better = (one, scale.end) if kind.more else (scale.start, one)
    drawing.rect(better[0], top - 8, better[1] - better[0], y - top + 8, "better")
    for tick in _ratio_ticks(scale):
        x = scale.at(tick)
        for y_row, _, _, _, _, deep in marks:
            # Not through the titles.
            ends = ((x, y_row + 10), (x, y_row + 13 * deep + 13))
            drawing.line(*ends, "one" if tick == 1 else "grid")
        drawing.text(x, y + 16, f"{BY}{tick:g}", "tick", "middle")
    if kind.more:
        drawing.text(scale.end, 16, "more is better →", "aside", "end")
    else:
        drawing.text(scale.start, 16, "← less is better", "aside")
    for y_row, title, found, limit, lane, deep in marks:
        drawing.line((scale.start, y_row - 8), (width - side, y_row - 8), "rule")
        drawing.text(scale.start, y_row + 6, clip(title, scale.end - scale.start, 12), "label")
        middle = y_row + 18 + 6.5 * (deep - 1)
        if limit is not None:
            x = scale.at(limit)
            drawing.tip(f"the bar: {by(limit)}")
            drawing.line((x, y_row + 10), (x, y_row + 13 * deep + 13), "limit")
            drawing.end_tip()
        for broker in reversed(found):
            was = found[broker]
            y_mark = y_row + 18 + 13 * lane[broker]
            kind_of, x = look[broker].kind, scale.at(was.median)
            drawing.tip(f"{title}, {broker}: {_times(was)}")
            drawing.range(scale.at(was.low), scale.at(was.high), y_mark, f"whisker {kind_of}")
            drawing.mark(look[broker].shape, (x, y_mark), 4.6, kind_of)
            if was.median > scale.high:
                drawing.text(x - 9, y_mark + 4, f"{by(was.median)} →", "tick", "end")
            elif was.median < scale.low:
                drawing.text(x + 9, y_mark + 4, f"← {by(was.median)}", "tick")
            drawing.end_tip()
        if subject in found:
            text = by(found[subject].median)
            if limit is not None:
                text += f" {TICK if reaches(name, found[subject].median, limit) else CROSS}"
            drawing.text(width - side, middle + 4, text, "value", "end")
    drawing.height = y + 24
    return str(drawing)


def bars(ident: str, title: str, name: str, found: Mapping[str, Summary], look: Signs) -> str:
    """A bar a broker, from 0, with the rounds' range as a whisker and the median in figures."""
    width, left, right, step = 340.0, 112.0, 64.0, 22.0
    kind = metric(name)
    drawing = _rows(ident, title, name, found, look, width, step)
    most = _longest(found.values(), kind.least)
    scale = Scale(0, most if most > 0 else 1, left, width - right)
    drawing.line((left, 4), (left, step * len(found) + 4), "one")
    for place, (broker, was) in enumerate(found.items()):
        y = 4 + step * place + step / 2
        end = scale.at(was.median)
        drawing.tip(f"{broker}: {_shown(name, was)}")
        drawing.rect(left, y - 6.5, end - left, 13, f"fill {look[broker].kind}")
        if was.median > most:
            for x in (end - 16, end - 11):
                drawing.line((x - 2.5, y + 9), (x + 2.5, y - 9), "torn")
        else:
            drawing.range(scale.at(was.low), scale.at(was.high), y, "whisker over")
        drawing.end_tip()
        drawing.text(width - 2, y + 4, kind.brief(was.median), "value", "end")
    return str(drawing)


def _longest(found: Iterable[Summary], least: float) -> float:
    """What a whole bar stands for. One that is many times as long as all others is torn off, so
    that something can be seen of those; not where they are as good as nothing."""
    rows = sorted(found, key=lambda was: was.median)
    if len(rows) > 2 and rows[-1].median > TORN * rows[-2].median > TORN * least:
        return max(was.high for was in rows[:-1]) * 1.4
    return max((was.high for was in rows), default=0)


def latency(ident: str, title: str, found: Mapping[str, Mapping[str, Summary]], look: Signs) -> str:
    """A line a broker from p50 (its sign) over p99 (a stroke) to p99.9 (a wider stroke), on a log
    axis. `found`: by broker, what it has of LATENCIES."""
    width, left, right, step = 340.0, 112.0, 104.0, 22.0
    medians = {
        broker: {name: was.median for name, was in row.items()} for broker, row in found.items()
    }
    drawing = _rows(ident, title, "", found, look, width, step)
    drawing.desc = "; ".join(
        f"{broker}: "
        + ", ".join(f"{metric(name).label} {_shown(name, was)}" for name, was in row.items())
        for broker, row in found.items()
    )
    figures = [value for row in medians.values() for value in row.values()]
    scale = log_scale(figures, left + 6, width - right - 6, least=4)
    bottom = step * len(found) + 4
    for tick in scale.ticks(4):
        x = scale.at(tick)
        drawing.line((x, 4), (x, bottom), "grid")
        drawing.text(x, bottom + 14, _tick(tick), "tick", "middle")
    drawing.text(width - 2, bottom + 14, "p50 / p99 / p99.9", "tick", "end")
    drawing.height = bottom + 20
    for place, (broker, row) in enumerate(medians.items()):
        y = 4 + step * place + step / 2
        sign = look[broker]
        positive = [scale.at(value) for value in row.values() if value > 0]
        drawing.tip(
            f"{broker}: "
            + ", ".join(f"{metric(n).label} {_shown(n, found[broker][n])}" for n in row)
        )
        if positive:
            drawing.line((min(positive), y), (max(positive), y), f"stem {sign.kind}")
        for name, high in (("p99_us", 4.0), ("p999_us", 7.0)):
            if row.get(name, 0) > 0:
                x = scale.at(row[name])
                drawing.line((x, y - high), (x, y + high), f"stem {sign.kind}")
        if row.get("p50_us", 0) > 0:
            drawing.mark(sign.shape, (scale.at(row["p50_us"]), y), 4.6, sign.kind)
        drawing.end_tip()
        shown = " / ".join(_tick(row[name]) if name in row else NONE for name in LATENCIES)
        drawing.text(width - 2, y + 4, shown, "value small", "end")
    return str(drawing)


def growth(ident: str, found: Growth, name: str, brokers: Sequence[str], look: Signs) -> str:
    """A line a broker over x, both axes log where the figures allow it. "" if there is nothing."""
    width, height, left, right, top, bottom = 420.0, 290.0, 50.0, 96.0, 26.0, 246.0
    kind = metric(name)
    lines = {}
    for broker in brokers:
        points = [
            (point.x, was)
            for point in sorted(found.points, key=lambda point: point.x)
            if (was := summarised(point.rounds.get(broker, []), name))
        ]
        if points:
            lines[broker] = points
    if not lines:
        return ""
    places = sorted({x for points in lines.values() for x, _ in points})
    figures = [value for points in lines.values() for value in _all(was for _, was in points)]
    across = Scale(places[0], places[-1], left + 8, width - right - 8, log=places[0] > 0)
    if min(figures) > 0:
        up = log_scale(figures, bottom, top, least=3)
    else:
        up = Scale(min(0.0, *figures), max(1e-9, *figures), bottom, top)
    drawing = Drawing(
        ident,
        width,
        height,
        f"{found.title}: {kind.label} over {found.x_label}",
        "; ".join(
            f"{broker}: " + ", ".join(f"{_shown(name, was)} at {x:g}" for x, was in points)
            for broker, points in lines.items()
        ),
    )
    drawing.text(2, 12, _titled(name), "axis")
    drawing.text(width - 2, 12, f"{'higher' if kind.more else 'lower'} is better", "aside", "end")
    for tick in up.ticks(6):
        drawing.line((left, up.at(tick)), (width - right, up.at(tick)), "grid")
        drawing.text(left - 6, up.at(tick) + 4, _tick(tick), "tick", "end")
    drawing.line((left, bottom + 6), (width - right, bottom + 6), "one")
    last = -99.0
    for x in places:
        tick_at = across.at(x)
        drawing.line((tick_at, bottom + 6), (tick_at, bottom + 10), "one")
        if tick_at - last >= 30:
            drawing.text(tick_at, bottom + 23, _tick(x), "tick", "middle")
            last = tick_at
    drawing.text((left + width - right) / 2, height - 4, found.x_label, "axis", "middle")
    for broker in reversed(lines):
        sign = look[broker]
        drawing.path(
            [(across.at(x), up.at(was.median)) for x, was in lines[broker]], f"curve {sign.kind}"
        )
        for x, was in lines[broker]:
            at = (across.at(x), up.at(was.median))
            drawing.tip(f"{broker}, {x:g}: {_shown(name, was)}")
            if abs(up.at(was.low) - up.at(was.high)) > 8:
                drawing.line(
                    (at[0], up.at(was.low)), (at[0], up.at(was.high)), f"whisker {sign.kind}"
                )
            drawing.mark(sign.shape, at, 4.2, sign.kind)
            drawing.end_tip()
    ends = {broker: up.at(points[-1][1].median) for broker, points in lines.items()}
    names = dict(zip(ends, apart(list(ends.values()), 14, top + 2, bottom), strict=True))
    for broker, y in names.items():
        start = (across.at(lines[broker][-1][0]) + 6, ends[broker])
        drawing.path([start, (width - right + 8, y), (width - right + 12, y)], "lead")
        drawing.text(width - right + 15, y + 4, clip(broker, right - 15, 11.5), "label")
    return str(drawing)


def _rows(
    ident: str,
    title: str,
    name: str,
    found: Mapping[str, object],
    look: Signs,
    width: float,
    step: float,
) -> Drawing:
    """The brokers' signs and names, one under the other."""
    said = _said([("", found)], name) if name else ""  # type: ignore[list-item]
    drawing = Drawing(ident, width, step * len(found) + 8, title, said)
    for place, broker in enumerate(found):
        y = 4 + step * place + step / 2
        drawing.mark(look[broker].shape, (7, y), 4.6, look[broker].kind)
        drawing.text(17, y + 4, clip(broker, 92, 12), "label")
    return drawing


def _ratio_ticks(scale: Scale) -> list[float]:
    """Doublings and halvings while they fit, so that twice and half are equally far from one."""
    for ticks in (
        (0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5),
        *([base**power for power in range(-12, 13)] for base in (2.0, 4.0, 10.0, 100.0)),
    ):
        inside = [float(tick) for tick in ticks if scale.low <= tick <= scale.high]
        places = [scale.at(tick) for tick in inside]
        if len(inside) > 2 and all(b - a >= 32 for a, b in pairwise(places)):
            return inside
    return [1.0]


def by(value: float) -> str:
    """A ratio as text, with its sign."""
    return BY + times(value)


def _all(found: Iterable[Summary]) -> list[float]:
    return [value for was in found for value in (was.median, was.low, was.high)]


def _titled(name: str) -> str:
    kind = metric(name)
    return f"{kind.label}, {kind.unit}" if kind.unit else kind.label


def _tick(value: float) -> str:
    """A figure on an axis: as short as can be."""
    for least, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= least:
            return f"{value / least:.3g}{letter}"
    return f"{value:.3g}"


def _shown(name: str, was: Summary) -> str:
    kind = metric(name)
    unit = f" {kind.unit}" if kind.unit else ""
    return f"{kind.show(was.median)} [{kind.show(was.low)} to {kind.show(was.high)}]{unit}"


def _times(was: Summary) -> str:
    return f"{by(was.median)} [{by(was.low)} to {by(was.high)}]"


def _said(rows: Iterable[tuple[str, Mapping[str, Summary]]], name: str = "") -> str:
    parts = []
    for title, found in rows:
        words = ", ".join(
            f"{broker} {_shown(name, was) if name else _times(was)}"
            for broker, was in found.items()
        )
        parts.append(f"{title}: {words}" if title else words)
    return "; ".join(parts)
