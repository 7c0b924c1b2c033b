"""Verdict: a run against the project's own bar.

Invariant: a point is reached only if both rounds-wise ratios were measured in this run; what could
not be measured is said to be missing, never reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .figures import ratio
from .results import Results
from .scenarios import SCENARIOS

CONNECTION_BYTES = 4096
START_KB = 30_000
AFTER_FLOOD = 1.10


@dataclass(frozen=True)
class Point:
    """One thing asked for: a ratio or a figure, and what it is to be at least or at most."""

    scenario: str
    what: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def reached(self) -> bool:
        if self.value is None or self.value <= 0:
            return False
        # What prints the same is the same.
        value = round(self.value, 2)
        return value >= self.limit if self.at_least else value <= self.limit

    def line(self) -> str:
        mark = "reached" if self.reached else "MISSED " if self.value is not None else "missing"
        shown = "-" if self.value is None else f"{self.value:.2f}"
        sign = ">=" if self.at_least else "<="
        return f"{mark}  {self.scenario:26} {self.what:28} {shown:>9} {sign} {self.limit:g}"


def points(results: Results) -> Iterator[Point]:
    """All points of the bar that this run has something to say about."""
    subject = results.subject()
    for scenario in SCENARIOS:
        entry = results.scenarios.get(scenario.id)
        if entry is None:
            continue
        bar = scenario.bar
        ours = entry.rounds.get(subject, [])
        broker = entry.rounds.get("dbus-broker", [])
        against = "dbus-broker"
        if scenario.like:
            like = results.scenarios.get(scenario.like)
            broker = like.rounds.get(subject, []) if like else []
            against = scenario.like
        for metric, limit, other, name in (
            ("rate", bar.rate, broker, against),
            ("rate", bar.rate_daemon, entry.rounds.get("dbus-daemon", []), "dbus-daemon"),
            ("cpu_us", bar.cpu, broker, against),
        ):
            if limit is None:
                continue
            found = ratio(ours, other, metric)
            label = f"{'rate' if metric == 'rate' else 'CPU'} / {name}"
            yield Point(
                scenario.id, label, found.median if found else None, limit, metric == "rate"
            )
    yield from _memory(results, subject)


def _memory(results: Results, subject: str) -> Iterator[Point]:
    idle = results.scenarios.get("idle")
    if idle is not None:
        for metric, limit in (("idle_bytes", CONNECTION_BYTES), ("rss_kb", START_KB)):
            rows = [row[metric] for row in idle.rounds.get(subject, []) if metric in row]
            yield Point("idle", metric, max(rows) if rows else None, limit, False)
    flood = results.scenarios.get("flood")
    if flood is not None:
        kept = [row["after_kb"] / row["rss_kb"] for row in flood.rounds.get(subject, [])]
        yield Point("flood", "after / before", max(kept) if kept else None, AFTER_FLOOD, False)


def text(results: Results) -> str:
    """A line for each point."""
    found = list(points(results))
    reached = sum(point.reached for point in found)
    lines = [point.line() for point in found]
    return "\n".join([*lines, f"{reached} of {len(found)} points of the bar reached"])
