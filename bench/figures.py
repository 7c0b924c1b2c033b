"""Figures: what each metric means, and the statistics that stand for its rounds.

Invariant: a comparison is made round by round. Round i of one broker is divided only by round i
of the other, which was measured right beside it, and never by another round or by a median;
what the machine did to both then falls out. Nothing here knows scenarios or files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = dict[str, float]
"""What one round of one broker gave: figures by metric, {} if it gave none."""


@dataclass(frozen=True)
class Metric:
    """A kind of figure. `more`: more of it is better. `floor`: a difference up to this share is
    taken for noise, however steady the rounds look. `least`: less is as good as this, so that
    next to nothing is not many times as much as nothing."""

    label: str
    unit: str
    more: bool = False
    digits: int = 0
    floor: float = 0.10
    least: float = 0.0

    def show(self, value: float) -> str:
        """`value` as text, without its unit."""
        return f"{value:,.{self.digits}f}"

    def brief(self, value: float) -> str:
        """`value` in few characters: 31.2k."""
        for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
            if abs(value) >= least:
                shrunk = value / size
                return f"{shrunk:.{0 if abs(shrunk) >= 100 else 1}f}{letter}"
        return self.show(value)


METRICS: dict[str, Metric] = {
    "rate": Metric("Rate", "/s", more=True),
    "cpu_us": Metric("CPU", "µs/message", digits=2),
    "p50_us": Metric("Latency p50", "µs", digits=1),
    "p99_us": Metric("Latency p99", "µs", digits=1, floor=0.25),
    "p999_us": Metric("Latency p99.9", "µs", digits=1, floor=2.0),
    "syscalls": Metric("System calls", "/message", digits=2, least=0.01),
    "switches": Metric("Context switches", "/message", digits=3, floor=0.25, least=0.01),
    "rss_kb": Metric("Memory", "KiB"),
    "peak_kb": Metric("Memory, peak", "KiB"),
    "after_kb": Metric("Memory, after the load", "KiB"),
    "idle_bytes": Metric("Memory of an idle connection", "bytes", least=100),
    "start_ms": Metric("Start", "ms", digits=1, floor=0.25),
}

LATENCIES = ("p50_us", "p99_us", "p999_us")


def metric(name: str) -> Metric:
    """The metric of that name; one that METRICS does not have is shown under its own name."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "", digits=2)


def ordered(names: Iterable[str]) -> list[str]:
    """Metrics in METRICS' order, others after them by name; each once."""
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (places.get(name, len(places)), name))


@dataclass(frozen=True)
class Summary:
    """What stands for a list of figures."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the figures lie apart, as a share of the median."""
        if self.low == self.high:
            return 0.0
        return (self.high - self.low) / abs(self.median) if self.median else math.inf


def summary(values: Iterable[float]) -> Summary:
    """ValueError if there are none."""
    found = sorted(values)
    if not found:
        raise ValueError("no figures to summarise")
    return Summary(statistics.median(found), found[0], found[-1])


def values(rounds: Iterable[Row], name: str) -> list[float]:
    """The figures of one metric, of the rounds that have it, in their order."""
    return [row[name] for row in rounds if name in row]


def summarised(rounds: Iterable[Row], name: str) -> Summary | None:
    """Their summary, or None where no round has that metric."""
    found = values(rounds, name)
    return summary(found) if found else None


def ratio(a_rounds: Sequence[Row], b_rounds: Sequence[Row], name: str) -> Summary | None:
    """a/b, pair by pair, summarised; figures below the metric's `least` count as that. Pairs that
    lack the metric on either side, or where b has 0, are left out; None if no pair is left."""
    least = metric(name).least
    found = [
        max(a[name], least) / max(b[name], least)
        for a, b in zip(a_rounds, b_rounds, strict=False)
        if name in a and name in b and max(b[name], least) > 0
    ]
    return summary(found) if found else None


def middle(ratios: Iterable[float]) -> float | None:
    """The geometric mean, which treats twice and half alike; None of nothing, or not above 0."""
    found = list(ratios)
    if not found or min(found) <= 0:
        return None
    return math.exp(math.fsum(map(math.log, found)) / len(found))


def times(value: float) -> str:
    """A ratio as text: three figures are all that it is worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
