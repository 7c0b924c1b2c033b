"""org.jitney.Trace1: a connection becomes a monitor that gets records instead of whole messages.

Invariant: all options are good before anything about the connection changes. Root and the bus's own
user alone may ask, as with BecomeMonitor: records name everybody's messages, and may hold them.

The interface is our own; dbus-daemon has none like it. `Start` answers with the bus's clock and the
time of day (ns), the same moment; then the signal `Records` comes: how many records were lost since
the last one, and an array of records (see jitney.broker.trace).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from jitney.broker.match import Rule
from jitney.broker.trace import RECORD, Tracer

from .. import matchrule, wire
from ..errors import INVALID_ARGS, DBusError
from ..front import loginfo
from .table import DRIVER, DRIVER_PATH, Interface, Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver

NAME = b"org.jitney.Trace1"
WAIT = 0.02
"""Seconds that records wait for company."""
STUCK = 1.0
"""Seconds after which a tracer that does not read is looked at again."""
MAX_PAYLOAD = 33554432

_OPTIONS = {"match": "as", "users": "au", "every": "u", "payload": "u", "denied": "b"}


def start(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    (given,) = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    options = _checked(given)
    wanted = [matchrule.parse(text.encode()) for text in options.get("match", [])]
    every = options.get("every", 1)
    if not every:
        raise DBusError(INVALID_ARGS, '"every" is one in so many, which cannot be 0')
    tracer = Tracer(
        driver.bus,
        conn,
        _head(conn),
        lambda tracer: soon(driver, tracer),
        wanted,
        frozenset(options["users"]) if "users" in options else None,
        every,
        min(options.get("payload", 0), MAX_PAYLOAD),
        options.get("denied", False),
    )
    now = wire.marshal("tt", (time.monotonic_ns(), time.time_ns()))
    driver.reply(conn, msg.serial, "tt", now)
    conn.tracer = tracer
    driver.bus.become_monitor(conn, _rules(wanted, tracer.judged_only))
    driver.front.waits_no_more(conn)
    name = conn.unique_name.decode()
    driver.front.log("info", f"Connection {name} ({loginfo(conn)}) became a tracer.")
    return None


def _checked(given: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    found = {}
    for key, (signature, value) in given.items():
        if key not in _OPTIONS:
            raise DBusError(INVALID_ARGS, f'Start knows no "{key}"')
        if signature != _OPTIONS[key]:
            raise DBusError(
                INVALID_ARGS, f'"{key}" must be of type {_OPTIONS[key]}, not {signature}'
            )
        found[key] = value
    return found


def _rules(wanted: list[Rule], judged_only: bool) -> list[Rule]:
    """What the tracer listens to: what it wants, and replies, which no rule about calls finds."""
    if not wanted:
        return [Rule()]
    if judged_only:
        return wanted
    return [*wanted, Rule(wire.RETURN), Rule(wire.ERROR)]


def _head(conn: Connection) -> bytes:
    """A `Records` to this connection, all but its body."""
    return wire.message(
        wire.SIGNAL,
        1,
        flags=wire.NO_REPLY,
        path=DRIVER_PATH,
        interface=NAME,
        member=b"Records",
        destination=conn.unique_name,
        sender=DRIVER,
        signature=f"ua{RECORD}",
    )


def soon(driver: Driver, tracer: Tracer) -> None:
    """Has the tracer ship what is pending before long."""
    loop = driver.front.hub.loop
    loop.call_later(STUCK if tracer.lost else WAIT, tracer.ship)


INTERFACE = Interface(
    NAME.decode(),
    [Method("Start", "a{sv}", "tt", start, privileged=True)],
    signals=f"""\
    <signal name="Records">
      <arg type="u"/>
      <arg type="a{RECORD}"/>
    </signal>
""",
    feature=True,
)
