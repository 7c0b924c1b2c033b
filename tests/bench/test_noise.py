"""A quiet run has no flags; each thing that spoils one is named."""

from __future__ import annotations

from typing import Any

import pytest

from jitney.bench.noise import flags
from jitney.bench.results import Broker, Growth, Point, Results, Scenario


def run(*rates: float, name: str = "rate", **machine: Any) -> Results:
    rounds = {"b": [{name: rate} for rate in rates]}
    return Results(
        machine=machine,
        brokers={"b": Broker()},
        scenarios={"s": Scenario("s", "Some calls", rounds=rounds)},
    )


def test_quiet() -> None:
    assert flags(run(100, 103, 99, 101, cores=2, load_before=0.4, load_after=2.0, steal=0.0)) == []


@pytest.mark.parametrize("name", ["rate", "cpu_us"])
def test_spread(name: str) -> None:
    (flag,) = flags(run(100, 120, 100, 119, name=name))
    assert flag.startswith("Some calls, b: ")
    assert "varies by 18% between rounds" in flag


def test_drift() -> None:
    (flag,) = flags(run(100, 101, 88, 87))
    assert flag == (
        "Some calls, b: Rate drifts: 13% lower in the later rounds than in the earlier ones."
    )
    assert flags(run(100, 112))
    assert not flags(run(100))
    assert not flags(run(0, 0))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"load_before": 0.8}, "load average 0.80 before the first"),
        ({"load_after": 0.8}, "load average 0.80 after the last"),
        ({"steal": 0.034}, "3.4%"),
        ({"cores": 1}, "one CPU"),
    ],
)
def test_machine(machine: dict[str, Any], words: str) -> None:
    (flag,) = flags(run(100, 100, **machine))
    assert words in flag


def test_odd_facts_are_no_failure() -> None:
    assert flags(run(100, 100, cores="many", load_before=None, steal=True)) == []


def test_own_remarks_and_growths() -> None:
    results = Results(noise=["A remark."])
    results.growths["g"] = Growth("g", "More", "names", [Point(10, {"b": [{"cpu_us": 1.0}] * 2})])
    assert flags(results) == ["A remark."]
    results.growths["g"].points[0].rounds["b"] = [{"cpu_us": 1.0}, {"cpu_us": 2.0}]
    assert flags(results)[1].startswith("More at 10, b: CPU drifts: 100% higher")
