"""Special measurements: memory, start, and a reader that stands still.

Invariant: each takes a started broker (or starts its own), gives back one row of figures, and
leaves no connection behind. Memory is what the kernel says of the broker's processes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import connects, load, wire
from .brokers import Broker
from .config import Config
from .link import Histogram, Link
from .running import Running
from .sandboxed import sandboxed
from .scenarios import couple

Row = dict[str, float]

IDLE = 2000
FLOOD_BYTES = 200_000_000
FLOOD_BODY = 65536
SETTLE = 2.5
"""Seconds that a broker has to give back what it no longer needs."""


@dataclass(frozen=True)
class Special:
    """One such measurement."""

    id: str
    title: str
    group: str
    unit: str
    measure: Callable[[Broker, set[int]], Row]


def idle(broker: Broker, cpus: set[int]) -> Row:
    """Memory at the start, and what one idle connection adds (authenticated, Hello said)."""
    with broker.start(Config(), cpus) as running:
        time.sleep(0.3)
        row = {"rss_kb": float(running.rss_kb()), "pss_kb": float(running.pss_kb())}
        # The first ones pay for tables that are there anyway.
        kept = _connect(running, 200)
        try:
            # Long enough that no memory is counted that the broker is about to give back.
            time.sleep(SETTLE)
            before = running.private_kb()
            kept += _connect(running, IDLE)
            time.sleep(SETTLE)
            row["idle_bytes"] = (running.private_kb() - before) * 1024 / IDLE
        finally:
            _close(kept)
        time.sleep(SETTLE)
        row["after_kb"] = float(running.rss_kb())
    return row


def start(broker: Broker, cpus: set[int]) -> Row:
    """From exec to the first reply."""
    with broker.start(Config(), cpus) as running:
        return {"start_ms": running.startup_seconds * 1000, "cpu_ms": running.cpu_seconds() * 1000}


def flood(broker: Broker, cpus: set[int]) -> Row:
    """200 MB for somebody who does not read, or as much of it as the broker takes, while two others
    call each other: what their calls take without and with it, how much memory it takes, and how
    much stays when it is over."""
    body = wire.byte_array(FLOOD_BODY)
    with broker.start(Config(), cpus) as running, contextlib.ExitStack() as stack:
        before = running.rss_kb()

        def link() -> Link:
            made = Link(running.path)
            stack.callback(made.close)
            return made

        caller, server, sender, reader = link(), link(), link(), link()
        couple(caller, server, 1)
        alone = Histogram()
        load.calls([caller], [server], 1, 0.5, alone)
        couple(caller, server, 1)
        data = wire.call(reader.name, b"Swallow", b"ay", body, flags=wire.NO_REPLY)
        sender.prepare(data)
        beside = Histogram()
        messages = FLOOD_BYTES // len(data)
        sent, count, seconds = load.flood(sender, caller, server, messages, beside)
        row = {
            "rate": sent / seconds,
            "sent": float(sent),
            "calls": float(count),
            "p50_us": beside.percentile(0.5),
            "p99_us": beside.percentile(0.99),
            "alone_p50_us": alone.percentile(0.5),
            "alone_p99_us": alone.percentile(0.99),
            "peak_kb": float(running.peak_kb()),
            "refused": float(sender.others),
        }
        row["arrived"] = float(load.drain(reader))
        stack.close()
        time.sleep(SETTLE)
        row["rss_kb"] = float(before)
        row["after_kb"] = float(running.rss_kb())
    return row


def _connect(running: Running, count: int) -> list[int]:
    return connects.stay(running.path, count)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


SPECIALS = (
    Special("idle", "Memory at start and of an idle connection", "memory", "", idle),
    Special(
        "flood", "200 MB for a reader that stands still", "memory",
        "a message of 64 KiB; latency is that of calls between two others", flood,
    ),
    Special(
        "sandboxed", "Calls out of a sandbox, 16 outstanding", "sandbox",
        "a call through an endpoint, or xdg-dbus-proxy; latency is that of single calls",
        sandboxed,
    ),
    Special("start", "Cold start to the first reply", "start", "", start),
)  # fmt: skip
