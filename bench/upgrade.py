"""`jitney bench upgrade`: how long a bus stands still when it is upgraded under load, and whether
anybody loses anything.

Invariant: the load goes on all the time, and each message of it is checked (see `checked`);
whatever is lost, doubled, out of order or disconnected is printed and makes the status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import brokers, wire
from .checked import Broadcaster, Caller, Client, Load, number_of, numbered
from .config import Config
from .running import Running

RECEIVERS = 20
SENDERS = 4
WITH_FDS = 20
HALVES = 20
"""Clients that have said half of something when the bus is upgraded."""

SERVICE = "[D-BUS Service]\nName={name}\nExec=/bin/sleep 30\n"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jitney bench upgrade",
        description="Upgrades a jitney again and again while clients call each other, send signals "
        "and pass descriptors, and services are being started; tells how long it stood still.",
    )
    parser.add_argument("--connections", type=int, default=1000, help="so many (1000)")
    parser.add_argument(
        "--upgrades", type=int, default=100, help="so many, one after the other (100)"
    )
    parser.add_argument("--idle", action="store_true", help="connections that say nothing")
    parser.add_argument("--broker", default="jitney", help="or jitney-pure")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(words)
    broker = brokers.find([options.broker])[0]
    with broker.start(Config(services=("services",))) as running:
        return _measure(running, options)


def _measure(running: Running, options: argparse.Namespace) -> int:
    load = Load()
    try:
        crowd = Crowd(load, running, options.connections, options.idle)
        pauses, used, gaps, seconds = [], [], [], []
        for i in range(options.upgrades):
            began = time.perf_counter()
            said = crowd.upgrade(i)
            if said is None:
                break
            pauses.append(float(said["pause_ms"]))
            used.append(float(said["cpu_ms"]))
            gaps.append(load.longest * 1000)
            seconds.append(time.perf_counter() - began)
            if sys.stderr.isatty():
                print(f"\r{i + 1} of {options.upgrades}", end="", file=sys.stderr, flush=True)
        crowd.finish()
        wrong = load.wrong
        figures = {
            "connections": len(load.clients),
            "upgrades": len(pauses),
            "messages": load.received,
            "wrong": len(wrong),
            "pause_ms": _spread(pauses),
            "cpu_ms": _spread(used),
            "gap_ms": _spread(gaps),
            "whole_ms": _spread([value * 1000 for value in seconds]),
        }
    finally:
        load.close()
    print(
        f"{figures['upgrades']} upgrades with {figures['connections']} connections, "
        f"{figures['messages']} messages checked, {len(wrong)} wrong"
    )
    for key, what in (
        ("pause_ms", "the bus stands still"),
        ("cpu_ms", "CPU time of both processes in that"),
        ("gap_ms", "no client of all gets anything"),
        ("whole_ms", "from asking for it to the answer"),
    ):
        row: Any = figures[key]
        print(f"{what:36} p50 {row['p50']:7.1f}  p99 {row['p99']:7.1f}  max {row['max']:7.1f} ms")
    for text in wrong[:20]:
        print("wrong:", text)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    return int(bool(wrong) or len(pauses) < options.upgrades)


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    return {
        "p50": ordered[last // 2],
        "p99": ordered[min(last, int(len(ordered) * 0.99))],
        "max": ordered[last],
    }


class Crowd:
    """All who are on the bus."""

    def __init__(self, load: Load, running: Running, count: int, idle: bool) -> None:
        self.load = load
        self.running = running
        self.clients = []
        for i in range(count):
            self.clients.append(Client(load, running.path))
            if i % 100 == 99:
                load.run(self.all_in)
        load.run(self.all_in)
        rest = list(self.clients)
        self.asker, self.wanting, self.late = (rest.pop() for _ in range(3))
        self.halves = [rest.pop() for _ in range(min(HALVES, len(rest) // 5))]
        self.callers: list[Caller] = []
        self.broadcasters: list[Broadcaster] = []
        self.waiting = 0
        self.late.hears = self.came
        if not idle:
            self.busy(rest)

    def all_in(self) -> bool:
        return all(client.name for client in self.clients) or bool(self.load.wrong)

    def busy(self, rest: list[Client]) -> None:
        for i in range(min(SENDERS, len(rest) // 100)):
            some = [rest.pop() for _ in range(RECEIVERS + 1)]
            self.broadcasters.append(Broadcaster(self.load, some[0], some[1:], b"Word%d" % i))
        self.load.run(lambda: not any(client.answers for client in self.clients))
        for one in self.broadcasters:
            one.go()
        while len(rest) > 1:
            caller, server = rest.pop(), rest.pop()
            self.callers.append(Caller(self.load, caller, server, len(self.callers) < WITH_FDS))

    def upgrade(self, turn: int) -> dict[str, Any] | None:
        """One upgrade, with half a message of some and a service that is being started; what the
        new process says."""
        name = b"org.example.Late%d" % turn
        folder = self.running.folder / "services"
        (folder / f"{name.decode()}.service").write_text(SERVICE.format(name=name.decode()))
        self.waiting = 1
        self.wanting.call(wire.call(name, b"Count", b"uay", numbered(turn)), self.served)
        asked: list[int] = []
        for client in self.halves:
            data = wire.driver_call(b"NameHasOwner", b"s", wire.string(wire.DRIVER))
            serial = client.next()
            client.answers[serial] = lambda kind, body: asked.remove(1)
            asked.append(1)
            client.write(data[:8] + serial.to_bytes(4, "little") + data[12:60])
        said: list[tuple[int, bytes]] = []
        self.load.longest = 0.0
        self.asker.call(
            wire.call(
                wire.DRIVER, b"Upgrade", b"s", wire.string(b""), path=wire.DRIVER_PATH,
                interface=b"org.jitney.Upgrade1",
            ),
            lambda kind, body: said.append((kind, body)),
        )  # fmt: skip
        if not self.load.run(lambda: bool(said), 120):
            self.load.complain("an upgrade that nobody answers")
            return None
        for client in self.halves:
            data = wire.driver_call(b"NameHasOwner", b"s", wire.string(wire.DRIVER))
            client.write(data[60:])
        own = wire.driver_call(b"RequestName", b"su", b"".join(
            (wire.string(name), bytes(-len(wire.string(name)) % 4), bytes(4))
        ))  # fmt: skip
        self.late.call(own, lambda kind, body: None)
        if not self.load.run(lambda: not asked and not self.waiting, 60):
            self.load.complain("something that was under way has not come to its end")
        kind, body = said[0]
        text = body[4:-1].decode()
        if kind != wire.RETURN:
            self.load.complain(text)
            return None
        found: dict[str, Any] = json.loads(text)
        return found

    def came(
        self, kind: int, serial: int, sender: bytes, member: bytes, body: bytes, fds: list[int]
    ) -> None:
        """What waited for the service is there."""
        self.late.reply(serial, sender, numbered(number_of(body)))

    def served(self, kind: int, body: bytes) -> None:
        self.waiting -= 1
        if kind != wire.RETURN:
            self.load.complain(f"a call to a service was answered by {body!r}")

    def finish(self) -> None:
        """Everything that is under way comes to its end."""
        for caller in self.callers:
            caller.stopped = True
        for one in self.broadcasters:
            one.stopped = True
        done = self.load.run(
            lambda: (
                all(caller.idle for caller in self.callers)
                and all(one.idle() for one in self.broadcasters)
            ),
            60,
        )
        if not done:
            self.load.complain("some messages never came")
