"""Run: every scenario on every broker, in turns.

Invariant: one measurement is one fresh broker process with the scenario's configuration, pinned
apart from the load where there are two CPUs, warmed up, measured, and ended. Round i measures all
brokers one after the other before round i + 1 begins, so that what drifts drifts for all. A broker
that fails a scenario gets a note and no figure there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from . import libraries, machine, results
from .brokers import Broker
from .config import Config
from .link import Histogram, LoadError
from .running import BrokerError, Running, raise_nofile
from .scenarios import GROWTHS, SCENARIOS, Growth, Scenario
from .special import SPECIALS, Special
from .syscalls import syscalls

Row = dict[str, float]
T = TypeVar("T")
FAILURES = (LoadError, BrokerError, libraries.LibraryError, LookupError, OSError, ValueError)

WARM_UP = 0.15
"""Seconds before the measurement, as a share of which too."""
DISTURBED = 0.15
"""CPUs that others may use on average before a measurement counts as disturbed."""


@dataclass
class Plan:
    """What to measure. `only`: ids or groups of scenarios and growths, all if there are none."""

    brokers: Sequence[Broker]
    rounds: int = 5
    seconds: float = 0.5
    growth_rounds: int = 2
    only: frozenset[str] = frozenset()
    growths: bool = True
    libraries: bool = True
    count_syscalls: bool = True
    progress: Callable[[str], None] = field(default=lambda text: None)

    def wants(self, *names: str) -> bool:
        return not self.only or bool(self.only.intersection(names))


class Runner:
    """One run of a plan; `results` grows as it goes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        cpus = sorted(os.sched_getaffinity(0))
        self.all_cpus = set(cpus)
        self.broker_cpus = {cpus[0]}
        self.load_cpus = set(cpus[1:]) or self.all_cpus
        self.disturbed: list[float] = []
        self.measured = 0
        self.results = results.Results(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine.facts(),
            settings={
                "rounds": plan.rounds,
                "seconds": plan.seconds,
                "broker on CPU": min(self.broker_cpus),
                "load on CPUs": " ".join(map(str, sorted(self.load_cpus))),
            },
            brokers={
                broker.name: results.Broker(broker.version, " ".join(broker.command))
                for broker in plan.brokers
            },
        )

    def run(self) -> results.Results:
        """Measures everything."""
        plan = self.plan
        raise_nofile()
        watch = machine.Watch()
        os.sched_setaffinity(0, self.load_cpus)
        try:
            for scenario in SCENARIOS:
                if plan.wants(scenario.id, scenario.group):
                    self.scenario(scenario)
            for special in SPECIALS:
                if plan.wants(special.id, special.group):
                    self.special(special)
            if plan.libraries:
                self.libraries()
            if plan.growths:
                for growth in GROWTHS:
                    if plan.wants("growth", f"growth-{growth.id}"):
                        self.growth(growth)
        finally:
            os.sched_setaffinity(0, self.all_cpus)
        self.results.machine["steal"] = round(watch.stolen(), 4)
        if self.disturbed:
            self.results.noise.append(
                f"{len(self.disturbed)} of {self.measured} measurements were disturbed: other"
                f" processes used up to {max(self.disturbed):.0%} of a CPU meanwhile."
            )
        return self.results

    # Kinds of measurement

    def scenario(self, scenario: Scenario) -> None:
        entry = results.Scenario(scenario.id, scenario.title, scenario.group, scenario.unit)
        self.results.scenarios[scenario.id] = entry
        self.rounds(
            entry.rounds,
            entry.notes,
            self.plan.rounds,
            scenario.title,
            lambda broker, i: self.measure(broker, scenario, self.plan.count_syscalls and i == 0),
        )

    def special(self, special: Special) -> None:
        entry = results.Scenario(special.id, special.title, special.group, special.unit)
        self.results.scenarios[special.id] = entry
        self.rounds(
            entry.rounds,
            entry.notes,
            max(1, self.plan.rounds // 2),
            special.title,
            lambda broker, i: special.measure(broker, self.broker_cpus),
        )

    def growth(self, growth: Growth) -> None:
        entry = results.Growth(growth.id, growth.title, growth.x_label)
        self.results.growths[growth.id] = entry
        for x in growth.xs:
            point = results.Point(x)
            entry.points.append(point)
            scenario = growth.at(x)
            self.rounds(
                point.rounds,
                entry.notes,
                self.plan.growth_rounds,
                f"{growth.title}: {x}",
                lambda broker, i, scenario=scenario: self.measure(broker, scenario, False),  # type: ignore[misc]
            )

    def libraries(self) -> None:
        plan = self.plan
        for library, reason in libraries.available().items():
            if not plan.wants("libraries", library):
                continue
            if reason:
                self.results.noise.append(f"Not measured: {library}: {reason}.")
                continue
            version = libraries.versions().get(library, "")
            entries = {
                name: results.Scenario(
                    f"{library}-{name}", f"{library}: {title}", "libraries", f"{library} {version}"
                )
                for name, title in (
                    ("calls", "one call at a time"),
                    ("calls16", "16 calls outstanding"),
                    ("signals", "signals"),
                )
            }

            def measure(broker: Broker, i: int, library: str = library) -> dict[str, Row]:
                with broker.start(Config(), self.broker_cpus) as running:
                    found: dict[str, Row] = libraries.run(
                        library, running, seconds=plan.seconds, cpus=self.load_cpus
                    )
                    return found

            rounds: dict[str, list[dict[str, Row]]] = {}
            notes: list[str] = []
            self.rounds(rounds, notes, max(1, plan.rounds // 2), library, measure)
            for name, entry in entries.items():
                entry.notes = list(notes)
                for broker, rows in rounds.items():
                    found = [row[name] for row in rows if name in row]
                    if found:
                        entry.rounds[broker] = found
                if entry.rounds:
                    self.results.scenarios[entry.id] = entry

    def rounds(
        self,
        into: dict[str, list[T]],
        notes: list[str],
        count: int,
        title: str,
        measure: Callable[[Broker, int], T],
    ) -> None:
        """`count` rounds of all brokers in turns."""
        failed: set[str] = set()
        for i in range(count):
            for broker in self.plan.brokers:
                if broker.name in failed:
                    continue
                self.plan.progress(f"{title} - {broker.name} ({i + 1}/{count})")
                try:
                    row = measure(broker, i)
                except FAILURES as error:
                    failed.add(broker.name)
                    into.pop(broker.name, None)
                    notes.append(f"{broker.name}: {error}")
                    continue
                into.setdefault(broker.name, []).append(row)

    # One measurement

    def measure(self, broker: Broker, scenario: Scenario, count_syscalls: bool) -> Row:
        seconds = self.plan.seconds
        with (
            broker.start(scenario.config, self.broker_cpus) as running,
            scenario.open(running.path) as op,
        ):
            op(max(0.05, seconds * WARM_UP), Histogram())
            histogram = Histogram()
            cpu, switches = running.cpu_seconds(), running.switches()
            watch = machine.Watch()
            count, taken = op(seconds, histogram)
            used = running.cpu_seconds() - cpu
            others = watch.others(used)
            self.measured += 1
            if others > DISTURBED and taken > 0.2:
                self.disturbed.append(others)
            row = {
                "rate": count / taken,
                "cpu_us": used * 1e6 / count,
                "switches": (running.switches() - switches) / count,
                "p50_us": histogram.percentile(0.5),
                "p99_us": histogram.percentile(0.99),
                "p999_us": histogram.percentile(0.999),
                "peak_kb": float(running.peak_kb()),
            }
            if count_syscalls:
                row.update(self.system_calls(running, op))
            return row

    def system_calls(self, running: Running, op: Callable[..., tuple[int, float]]) -> Row:
        counted: list[int] = []
        calls, how = syscalls(
            running, lambda: counted.append(op(self.plan.seconds / 4, Histogram())[0])
        )
        if calls is None:
            text = f"System calls were not counted: {how}."
            if text not in self.results.noise:
                self.results.noise.append(text)
            return {}
        return {"syscalls": calls / counted[0]} if counted and counted[0] else {}
