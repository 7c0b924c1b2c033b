"""Scenarios: what is measured, and how much of it a broker must do.

Invariant: a scenario is data (SCENARIOS, GROWTHS) around a context manager that sets a broker up
and gives back one operation: `op(seconds, histogram) -> (how often, seconds)`, to be run as often
as the runner wants. What it counts is what all figures "by message" are divided by.

The bar is the project's own: rate at least, against dbus-broker and against dbus-daemon, and CPU
by message at most, against dbus-broker.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import connects, load, wire
from .config import Config
from .link import Histogram, Link, LoadError
from .traced import traced

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Op = Callable[[float, Histogram], tuple[int, float]]
Open = Callable[[str], "AbstractContextManager[Op]"]

TEXT = wire.string(b"payload")
CALLS = "a call: two messages"


@dataclass(frozen=True)
class Bar:
    """What jitney is to reach; None: nothing is asked."""

    rate: float | None = None
    rate_daemon: float | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class Scenario:
    """One thing to measure. `like`: the scenario of the same broker that the bar is about, where
    it is not another broker's."""

    id: str
    title: str
    group: str
    unit: str
    open: Open
    bar: Bar = field(default_factory=Bar)
    config: Config = field(default_factory=Config)
    like: str = ""


@dataclass(frozen=True)
class Growth:
    """How something grows: a scenario for each x."""

    id: str
    title: str
    x_label: str
    xs: tuple[int, ...]
    at: Callable[[int], Scenario]


# Set-ups. Each closes what it opened, also when the broker fails in between.


@contextlib.contextmanager
def _links(path: str, count: int, *, with_fds: bool = False) -> Iterator[list[Link]]:
    with contextlib.ExitStack() as stack:
        links = []
        for _ in range(count):
            link = Link(path, with_fds=with_fds)
            stack.callback(link.close)
            links.append(link)
        yield links


@contextlib.contextmanager
def _idle(path: str, count: int) -> Iterator[None]:
    kept = connects.stay(path, count) if count else []
    try:
        yield
    finally:
        for fd in kept:
            os.close(fd)


def couple(
    caller: Link, server: Link, window: int, body: bytes = TEXT, *, echo: bool = True, fd: int = -1
) -> None:
    """Prepares a caller and its server: what they send, and what they expect."""
    signature = b"s" if body is TEXT else b"ay"
    answer, answer_signature = (body, signature) if echo else (b"", b"")
    n_fds = 0 if fd < 0 else 1
    data = wire.call(server.name, b"Echo", signature, body, n_fds=n_fds)
    caller.prepare(data, serial=10, window=window)
    caller.expect(wire.RETURN, server.name, answer)
    caller.pass_fd(fd)
    reply, at = wire.reply(caller.name, answer_signature, answer)
    server.prepare(reply, at, reply_to=10)
    server.expect(wire.CALL, caller.name, body)


def calls(
    window: int,
    pairs: int = 1,
    *,
    size: int = 0,
    busy: bool = False,
    with_fds: bool = False,
    idle: int = 0,
) -> Open:
    """Calls from `pairs` callers to a server each, `window` outstanding. With `size`, the call has
    an ``ay`` body of so many bytes and the reply none; else both have a short string."""

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Op]:
        body = wire.byte_array(size) if size else TEXT
        with (
            _idle(path, idle),
            _links(path, 2 * pairs, with_fds=with_fds) as links,
            open(os.devnull) as file,
        ):
            callers, servers = links[:pairs], links[pairs:]
            fd = file.fileno() if with_fds else -1
            for caller, server in zip(callers, servers, strict=True):
                couple(caller, server, window, body, echo=not size, fd=fd)

            def op(seconds: float, histogram: Histogram) -> tuple[int, float]:
                before = sum(server.fds_seen for server in servers)
                count, taken = load.calls(callers, servers, window, seconds, histogram, busy)
                if with_fds and sum(server.fds_seen for server in servers) - before != count:
                    raise LoadError("descriptors were lost")
                return count, taken

            yield op

    return opened


def signals(
    receivers: int,
    batch: int,
    ahead: int,
    *,
    rule: str = "type='signal',interface='org.example.Load'",
    bystanders: int = 0,
    other: str = "",
    body: bytes = TEXT,
) -> Open:
    """Signals from one sender to `receivers` with `rule`; each bystander has the rule `other`,
    in which {} is another number for each, and must get nothing."""

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Op]:
        with _links(path, 1 + receivers + bystanders) as links:
            sender = links[0]
            sender.prepare(wire.signal(b"Tick", b"s", body))
            sender.expect(wire.SIGNAL, sender.name, body)
            for i, link in enumerate(links[1:]):
                text = rule if i < receivers else other.format(i)
                link.ask(wire.add_match(text.encode(), 5), 5)
                link.expect(wire.SIGNAL, sender.name, body)

            def op(seconds: float, histogram: Histogram) -> tuple[int, float]:
                return load.signals(
                    sender,
                    links[1 : 1 + receivers],
                    links[1 + receivers :],
                    batch,
                    ahead,
                    seconds,
                    histogram,
                )

            yield op

    return opened


def driver(*messages: bytes, window: int = 16, prelude: tuple[bytes, ...] = ()) -> Open:
    """Calls to the bus itself, these in turn; `prelude` goes before, once."""

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Op]:
        with _links(path, 1) as (link,):
            if prelude:
                link.tell_all(list(prelude))

            def op(seconds: float, histogram: Histogram) -> tuple[int, float]:
                return load.driver(link, list(messages), window, seconds, histogram)

            yield op

    return opened


def connecting(pipelined: bool, idle: int = 0) -> Open:
    """Clients that come and go, while `idle` others are there."""

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Op]:
        with _idle(path, idle):
            yield lambda seconds, histogram: connects.connects(path, seconds, pipelined, histogram)

    return opened


def name_body(name: bytes, flags: int = 4) -> bytes:
    text = wire.string(name)
    return text + bytes(-len(text) % 4) + struct.pack("<I", flags)


NAME = b"org.example.Name"
RULE = b"type='signal',sender='org.example.Name',interface='org.example.I',member='M',path='/a/b'"

OWNER = wire.driver_call(b"GetNameOwner", b"s", wire.string(wire.DRIVER))
REQUEST = wire.driver_call(b"RequestName", b"su", name_body(NAME))
RELEASE = wire.driver_call(b"ReleaseName", b"s", wire.string(NAME))
ADD = wire.driver_call(b"AddMatch", b"s", wire.string(RULE))
REMOVE = wire.driver_call(b"RemoveMatch", b"s", wire.string(RULE))

INSIDE = wire.string(b"com.example.inside.it")
SIGNAL = "a signal"
subscribers = functools.partial(signals, 10, 16, 4, bystanders=990)

SCENARIOS = (
    Scenario(
        "roundtrip", "Round trip, sleeping client", "calls", CALLS, calls(1), Bar(1.0, 1.3, 0.9)
    ),
    Scenario(
        "roundtrip-polling", "Round trip, polling client", "calls", CALLS, calls(1, busy=True),
        Bar(1.2, 1.5, 0.6),
    ),
    Scenario("pipelined", "64 calls outstanding", "calls", CALLS, calls(64), Bar(3.0, 6.5, 0.2)),
    Scenario(
        "pipelined-uncounted", "64 calls outstanding, --no-metrics", "metrics", CALLS, calls(64),
        config=Config(options=("--no-metrics",)),
    ),
    Scenario(
        "pipelined-counted", "64 calls outstanding, metrics served", "metrics", CALLS, calls(64),
        Bar(0.97), Config(options=("--metrics=unix:{folder}/metrics",)), like="pipelined-uncounted",
    ),
    Scenario(
        "pairs", "50 pairs, 8 calls outstanding each", "calls", CALLS, calls(8, 50),
        Bar(6.0, 15.0, 0.2),
    ),
    Scenario(
        "fanout", "Fan-out to 100, a stream", "signals", SIGNAL, signals(100, 16, 4),
        Bar(6.0, 12.0, 0.15),
    ),
    Scenario(
        "fanout-single", "Fan-out to 100, one signal at a time", "signals", SIGNAL,
        signals(100, 1, 1),
    ),
    Scenario(
        "subscribers-member", "1,000 subscribers, 10 match by member", "signals", SIGNAL,
        subscribers(
            rule="type='signal',interface='org.example.Load',member='Tick'",
            other="type='signal',interface='org.example.Load',member='Tock{}'",
        ),
        Bar(3.0, 8.0, 0.35),
    ),
    Scenario(
        "subscribers-arg0", "1,000 subscribers, 10 match by arg0namespace", "signals", SIGNAL,
        subscribers(
            rule="type='signal',arg0namespace='com.example.inside'",
            other="type='signal',arg0namespace='com.example.outside{}'",
            body=INSIDE,
        ),
        Bar(3.0, 8.0, 0.35),
    ),
    Scenario(
        "subscribers-path", "1,000 subscribers, 10 match by path_namespace", "signals", SIGNAL,
        subscribers(
            rule="type='signal',path_namespace='/org/example'",
            other="type='signal',path_namespace='/org/example/Other{}'",
        ),
        Bar(3.0, 8.0, 0.35),
    ),
    Scenario(
        "body-64k", "Calls with 64 KiB", "bodies", CALLS, calls(1, size=1 << 16),
        Bar(1.2, 2.8, 0.9),
    ),
    Scenario(
        "body-64k-stream", "Calls with 64 KiB, 16 outstanding", "bodies", CALLS,
        calls(16, size=1 << 16),
    ),
    Scenario(
        "body-1m", "Calls with 1 MiB", "bodies", CALLS, calls(1, size=1 << 20), Bar(1.1, 4.5, 0.9)
    ),
    Scenario(
        "body-16m", "Calls with 16 MiB", "bodies", CALLS, calls(1, size=1 << 24),
        Bar(1.1, 5.0, 0.9),
    ),
    Scenario(
        "fds", "One descriptor in each call, 8 outstanding", "descriptors", CALLS,
        calls(8, with_fds=True), Bar(4.0, 1.7, 0.3),
    ),
    Scenario(
        "fds-single", "One descriptor in each call, one call at a time", "descriptors", CALLS,
        calls(1, with_fds=True),
    ),
    *(
        Scenario(
            f"connect-{'pipelined' if pipelined else 'steps'}{'-1000' if idle else ''}",
            f"Connect, {'all in one write' if pipelined else 'step by step'}"
            f"{', 1,000 idle' if idle else ''}",
            "connect", "connect, authenticate, Hello, close", connecting(pipelined, idle),
            Bar(1.2, 2.5, 0.8),
        )
        for pipelined in (False, True)
        for idle in (0, 1000)
    ),
    Scenario(
        "driver-owner", "GetNameOwner, 16 outstanding", "driver", "a call", driver(OWNER),
        Bar(1.5, None, 0.65),
    ),
    Scenario(
        "driver-names", "RequestName + ReleaseName, 16 outstanding", "driver", "a call",
        driver(REQUEST, RELEASE), Bar(1.2, None, 0.8),
    ),
    Scenario(
        "driver-matches", "AddMatch + RemoveMatch, 16 outstanding", "driver", "a call",
        driver(ADD, REMOVE), Bar(1.5, None, 0.65),
    ),
    Scenario("rules-400", "64 calls outstanding, 400 policy rules", "policy", CALLS, calls(64),
             config=Config(rules=400), like="pipelined"),
    Scenario(
        "rules-40000", "64 calls outstanding, 40,000 policy rules", "policy", CALLS, calls(64),
        Bar(0.95, None, 1.05), Config(rules=40000), like="pipelined",
    ),
    Scenario(
        "traced", "64 calls outstanding, a tracer looks on", "trace", CALLS, traced(calls(64)),
        Bar(0.8), like="pipelined",
    ),
    Scenario(
        "traced-stuck", "64 calls outstanding, a tracer stands still", "trace", CALLS,
        traced(calls(64), reads=False), Bar(0.8), like="pipelined",
    ),
    Scenario(
        "traced-roundtrip", "Round trip, sleeping client, a tracer looks on", "trace", CALLS,
        traced(calls(1)), Bar(0.8), like="roundtrip",
    ),
)  # fmt: skip


def _many_rules(count: int) -> tuple[bytes, ...]:
    return tuple(
        wire.add_match(b"type='signal',interface='org.example.I%d',member='M'" % i, i + 100)
        for i in range(count)
    )


def _many_names(count: int) -> tuple[bytes, ...]:
    return tuple(
        wire.driver_call(b"RequestName", b"su", name_body(b"org.example.N%d" % i), i + 100)
        for i in range(count)
    )


GROWTHS = (
    Growth(
        "peers", "Pipelined calls by the number of idle peers", "idle peers",
        (1, 10, 100, 1000, 10000),
        lambda x: Scenario("", f"{x} idle peers", "", CALLS, calls(64, idle=x)),
    ),
    Growth(
        "pairs", "Calls by the number of pairs that talk", "pairs", (1, 3, 10, 30, 100, 300),
        lambda x: Scenario("", f"{x} pairs", "", CALLS, calls(8, x)),
    ),
    Growth(
        "fanout", "Signals by the number of receivers", "receivers", (1, 10, 100, 1000),
        lambda x: Scenario("", f"{x} receivers", "", SIGNAL, signals(x, 8, 4)),
    ),
    Growth(
        "rules", "Pipelined calls by the number of policy rules", "rules",
        (10, 100, 1000, 10000, 40000),
        lambda x: Scenario("", f"{x} rules", "", CALLS, calls(64), config=Config(rules=x)),
    ),
    Growth(
        "matches", "AddMatch + RemoveMatch by the rules a client has", "match rules",
        (1, 10, 100, 1000, 10000),
        lambda x: Scenario(
            "", f"{x} match rules", "", "a call", driver(ADD, REMOVE, prelude=_many_rules(x))
        ),
    ),
    Growth(
        "names", "RequestName + ReleaseName by the names on the bus", "names",
        (1, 10, 100, 1000, 10000),
        lambda x: Scenario(
            "", f"{x} names", "", "a call", driver(REQUEST, RELEASE, prelude=_many_names(x))
        ),
    ),
    Growth(
        "bodies", "Calls by the size of their bodies", "bytes",
        (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22),
        lambda x: Scenario("", f"{x} bytes", "", CALLS, calls(1, size=x)),
    ),
)  # fmt: skip
