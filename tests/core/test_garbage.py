"""A bus that nobody holds is freed, whoever is still connected to it.

Invariant: what leads from a bus back to it is known to Python's collector, in the compiled build as
in plain Python. Each test has a weak reference to something that only the bus holds.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from corebus import call, join, make_bus
from kdbuskit import World, item, message, text, u64

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.kdbus import constants as c
from jitney.broker.match import Rule

NAME = b"com.example.Name"


class Socket:
    """What a front has for each connection, and where it finds its bus again."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus


def freed(ref: weakref.ref[Any]) -> bool:
    gc.collect()
    return ref() is None


def nothing(bus: Bus, conn: Connection) -> None:
    pass


def a_name(bus: Bus, conn: Connection) -> None:
    bus.request_name(conn, NAME, 0)


def a_rule(bus: Bus, conn: Connection) -> None:
    bus.add_match(conn, Rule(type=4, sender=NAME, member=b"M"))


def a_call(bus: Bus, conn: Connection) -> None:
    a_name(bus, join(bus))
    bus.dispatch(conn, call(NAME))


@pytest.mark.parametrize("keep", [nothing, a_name, a_rule, a_call])
def test_bus_of_the_core(keep: Callable[[Bus, Connection], None]) -> None:
    bus = make_bus()
    conn = join(bus)
    socket = conn.transport = Socket(bus)
    keep(bus, conn)
    ref = weakref.ref(socket)
    del bus, conn, socket
    assert freed(ref)


@pytest.mark.parametrize("flags", [0, c.EXPECT_REPLY])
def test_kdbus_domain(flags: int) -> None:
    world = World()
    sender, receiver = world.conn(), world.conn()
    receiver.acquire(NAME)
    receiver.listen()
    items = text(c.ITEM_DST_NAME, NAME) + item(c.ITEM_PAYLOAD_VEC, u64(4096, 0))
    assert sender.send(message(0, items, flags, timeout=1 << 62 if flags else 0)) == 0
    ref = weakref.ref(receiver.news)
    del world, sender, receiver
    assert freed(ref)
