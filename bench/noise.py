"""Noise: why figures of a run may not be worth much.

Invariant: each flag is one sentence that names where it was seen (scenario and broker, or the
machine) and how much; a quiet run has none. Flags never change a figure.
"""

from __future__ import annotations

from collections.abc import Iterator

from .figures import Row, metric, summary, values
from .results import Results, Rounds

SPREAD = {"rate": 0.15, "cpu_us": 0.15}
"""How far the rounds of a broker may lie apart, as a share of their median."""
DRIFT = 0.10
"""How far the later half of the rounds may lie from the earlier half."""
LOAD = 0.5
STEAL = 0.01


def flags(results: Results) -> list[str]:
    """Sentences about the machine first, then the runner's, then those about single figures."""
    found = [*machine(results), *results.noise]
    for scenario in results.scenarios.values():
        found += _rounds(scenario.title, scenario.rounds)
    for growth in results.growths.values():
        for point in growth.points:
            found += _rounds(f"{growth.title} at {point.x:g}", point.rounds)
    return list(dict.fromkeys(found))


def machine(results: Results) -> Iterator[str]:
    """What was wrong with the machine as a whole."""
    facts = {
        name: value
        for name, value in results.machine.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if facts.get("cores", 2) < 2:
        yield "The machine has one CPU: the brokers shared it with the load that measured them."
    for name, when in (("load_before", "before the first"), ("load_after", "after the last")):
        if facts.get(name, 0) > LOAD and (name == "load_before" or "load_before" not in facts):
            yield (
                f"The machine was not idle: load average {facts[name]:.2f} {when} measurement,"
                f" more than {LOAD:g}."
            )
    if facts.get("steal", 0) > STEAL:
        yield f"The host took {facts['steal']:.1%} of the CPU time for others (steal)."


def _rounds(title: str, rounds: Rounds) -> Iterator[str]:
    for broker, rows in rounds.items():
        for name, limit in SPREAD.items():
            yield from _metric(f"{title}, {broker}: {metric(name).label}", rows, name, limit)


def _metric(where: str, rows: list[Row], name: str, limit: float) -> Iterator[str]:
    found = values(rows, name)
    if len(found) < 2:
        return
    half = len(found) // 2
    earlier, later = summary(found[:half]), summary(found[-half:])
    change = later.median / earlier.median - 1 if earlier.median else 0.0
    apart = later.low > earlier.high or later.high < earlier.low
    spread = summary(found).spread
    if apart and abs(change) > DRIFT:
        way = "higher" if change > 0 else "lower"
        yield (
            f"{where} drifts: {abs(change):.0%} {way} in the later rounds than in the earlier ones."
        )
    elif spread > limit:
        yield f"{where} varies by {spread:.0%} between rounds, more than {limit:.0%}."
