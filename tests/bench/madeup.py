"""A made-up run: five brokers with plausible figures, the same every time.

Invariant: nothing here was measured. `run(jitney=0.7)` gives the same run but for jitney's rate,
which is 0.7 times what it was, so that a comparison has something to find.
"""

from __future__ import annotations

import random

from jitney.bench.results import Broker, Growth, Point, Results, Rounds, Scenario

# Speed of each broker, as a share of dbus-broker's.
SPEEDS = {
    "dbus-daemon": 0.62,
    "dbus-broker": 1.0,
    "busd": 0.55,
    "jitney": 1.24,
    "jitney pure": 0.06,
}

SCENARIOS = [
    # id, title, group, unit, messages a second of dbus-broker, extra metrics
    ("call1", "One call at a time", "Calls", "calls with their replies", 31000, ()),
    ("call64", "64 calls outstanding", "Calls", "calls with their replies", 94000, ()),
    ("large", "Calls with a body of 64 KiB", "Calls", "calls with their replies", 9200, ()),
    ("fds", "Calls that pass a descriptor & <wait>", "Calls", "", 22000, ()),
    ("fan1", "Signal to one of a thousand subscribers", "Signals", "signals delivered", 140000, ()),
    ("fan100", "Signal to a hundred subscribers", "Signals", "signals delivered", 610000, ()),
    ("connect", "Connect, Hello, close", "Connections", "connections", 5200, ("start_ms",)),
    ("idle", "A thousand idle connections", "Connections", "", 0, ("idle_bytes", "rss_kb")),
    ("flood", "A reader that never reads", "Pressure", "messages", 52000, ("peak_kb", "after_kb")),
]


def run(*, jitney: float = 1.0, rounds: int = 5, noise: float = 0.02, seed: int = 1) -> Results:
    dice = random.Random(seed)
    results = Results(
        started="2026-03-01T12:00:00+00:00",
        machine={
            "cpu": "Madeup 9000 @ 3.20GHz",
            "cores": 8,
            "kernel": "6.12.9",
            "python": "3.13.2",
            "memory_kb": 16 * 2**20,
            "virtual": "kvm",
            "load_before": 0.12,
            "load_after": 1.9,
            "steal": 0.0,
        },
        settings={"rounds": rounds, "seconds": 2.0, "pinned": True, "order": ["in", "turns"]},
        brokers={
            name: Broker(f"{name} 1.{place}.0", f"/usr/bin/{name.split()[0]} --session --nofork")
            for place, name in enumerate(SPEEDS)
        },
    )
    for ident, title, group, unit, rate, extra in SCENARIOS:
        made: Rounds = {name: [] for name in SPEEDS}
        for _ in range(rounds):
            mood = dice.gauss(1, noise * 2)  # what the machine did to all of them in this round
            for name, usual in SPEEDS.items():
                speed = usual * mood * dice.gauss(1, noise)
                speed *= jitney if name == "jitney" else 1.0
                made[name].append(row(dice, speed, rate, extra))
        results.scenarios[ident] = Scenario(ident, title, group, unit, made)
    results.scenarios["fds"].rounds["busd"] = [{} for _ in range(rounds)]
    results.scenarios["fds"].notes.append("busd closes the connection: it was left out.")
    results.growths["names"] = Growth(
        "names",
        "A call among many names",
        "names on the bus",
        [Point(10**power, growing(dice, power, rounds)) for power in range(1, 6)],
    )
    return results


def row(dice: random.Random, speed: float, rate: float, extra: tuple[str, ...]) -> dict[str, float]:
    made: dict[str, float] = {}
    if rate:
        p50 = 1e6 / rate / speed
        made = {
            "rate": rate * speed,
            "cpu_us": 0.8e6 / rate / speed,
            "p50_us": p50,
            "p99_us": p50 * dice.uniform(2, 2.4),
            "p999_us": p50 * dice.uniform(4, 12),
            "syscalls": 3.0 / min(speed, 2),
            "switches": 1.1 / min(speed, 2),
        }
    for name, value in (
        ("start_ms", 21), ("idle_bytes", 5100), ("rss_kb", 8800),
        ("peak_kb", 140000), ("after_kb", 9100),
    ):  # fmt: skip
        if name in extra:
            made[name] = value / speed**0.5
    return made


def growing(dice: random.Random, power: int, rounds: int) -> Rounds:
    made: Rounds = {}
    for name, speed in SPEEDS.items():
        slope = 1.6**power if name == "busd" else 1.03**power
        made[name] = [
            {
                "cpu_us": 9 / speed * slope * dice.gauss(1, 0.05),
                "rss_kb": (7000 + 10**power * 0.3) * dice.gauss(1, 0.01),
            }
            for _ in range(rounds)
        ]
    return made
