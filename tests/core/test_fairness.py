"""Two users, one of them hostile: whatever he takes, something is left for the other."""

from __future__ import annotations

import os
from collections.abc import Callable

import corebus
import pytest

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.errors import LIMITS, Refused
from jitney.broker.fds import FdSet
from jitney.broker.limits import KEPT_BYTES, KEPT_FDS, USER_OBJECTS, USER_SHARE
from jitney.broker.match import Rule

HOSTILE, KIND, VICTIM = 666, 1000, 1001
CHUNK = {"signature": "ay", "values": [bytes(10_000)]}


def flood(bus: Bus, sender: Connection, dest: Connection, **more: object) -> int:
    """Sends until a message is refused; how many were not."""
    count = 0
    bus.front.take()
    while True:
        bus.dispatch(sender, corebus.call(dest.unique_name, count + 1, 1, **(more or CHUNK)))
        if bus.front.take("refused"):
            return count
        count += 1


def reaches(bus: Bus, sender: Connection, dest: Connection, serial: int = 1) -> bool:
    """Whether one small call gets through."""
    before = dest.queue.size
    bus.front.take()
    bus.dispatch(sender, corebus.call(dest.unique_name, serial, 1))
    assert bool(bus.front.take("refused")) == (dest.queue.size == before)
    return dest.queue.size > before


def test_alone_one_may_have_all() -> None:
    """A single sender sees dbus-daemon's limit and nothing else: up to it, and one more."""
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    a, b = corebus.join(bus), corebus.join(bus)
    size = corebus.call(b.unique_name, 1, 1, **CHUNK).size
    count = flood(bus, a, b)
    assert (count - 1) * size <= 100_000 < b.queue.size
    # Neither more of the same helps, nor another connection that has as much elsewhere.
    assert not reaches(bus, a, b)
    assert reaches(bus, corebus.join(bus), b)


@pytest.mark.parametrize("connections", [1, 20])
def test_a_full_queue_has_room_for_others(connections: int) -> None:
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    victim, kind = corebus.join(bus, VICTIM), corebus.join(bus, KIND)
    for _ in range(connections):
        flood(bus, corebus.join(bus, HOSTILE), victim)
    full = victim.queue.size
    # The hostile user gained nothing by having more connections.
    assert full <= 100_000 + 11_000
    for serial in range(1, 20):
        assert reaches(bus, kind, victim, serial)
    assert not reaches(bus, corebus.join(bus, HOSTILE), victim)


def test_each_who_comes_leaves_something() -> None:
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    victim = corebus.join(bus, VICTIM)
    flood(bus, corebus.join(bus, HOSTILE), victim)
    small = {"signature": "ay", "values": [b""]}
    shares = []
    for uid in range(2000, 2006):
        flood(bus, corebus.join(bus, uid), victim, **small)
        shares.append(bus.accounts.user(uid).bytes)
        assert victim.queue.size < 150_000
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0


def test_many_queues_of_one_user() -> None:
    """Connections that do not read are no way to more memory than a user may have."""
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    kind = corebus.join(bus, KIND)
    sender = corebus.join(bus, HOSTILE)
    sinks = [corebus.join(bus, HOSTILE) for _ in range(20)]
    for sink in sinks:
        flood(bus, sender, sink)
    total = sum(sink.queue.size for sink in sinks)
    assert total == bus.accounts.user(HOSTILE).kept_bytes
    assert total <= 100_000 * USER_SHARE + 11_000
    # Whoever wants something of that user still reaches each of its connections.
    for serial, sink in enumerate(sinks):
        assert reaches(bus, kind, sink, serial + 1)
    # And what the user does to itself is nobody else's: two others talk as if nothing was.
    other = corebus.join(bus, VICTIM)
    assert flood(bus, kind, other) >= 10


def test_signals_to_readers_that_stand_still_do_not_cost_their_sender() -> None:
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    service, client = corebus.join(bus, 0), corebus.join(bus, KIND)
    for _ in range(30):
        bus.add_match(corebus.join(bus, HOSTILE), Rule(type=4))
    for serial in range(1, 100):
        bus.dispatch(service, corebus.signal(serial, **CHUNK))
    assert bus.n_dropped > 0
    hostile = bus.accounts.user(HOSTILE)
    assert hostile.kept_bytes <= 100_000 * USER_SHARE + 11_000
    assert reaches(bus, service, client)
    assert flood(bus, service, client) >= 10
    # What is dropped is counted where it was to go.
    dropped = [conn.dropped for conn in bus.connections.values() if conn.user is hostile]
    assert sum(dropped) == bus.n_dropped


def test_the_bus_itself_is_heard() -> None:
    """A full queue still has room for what the bus has to say."""
    bus = corebus.make_bus(max_outgoing_bytes=100_000)
    victim = corebus.join(bus, VICTIM)
    flood(bus, corebus.join(bus, HOSTILE), victim)
    before = victim.queue.size
    bus.emit(victim, corebus.call(victim.unique_name).wire())
    assert victim.queue.size > before


def test_descriptors() -> None:
    bus = corebus.make_bus(max_outgoing_unix_fds=16)
    victim, kind = corebus.join(bus, VICTIM), corebus.join(bus, KIND)

    def pass_some(sender: Connection, count: int) -> bool:
        msg = corebus.call(victim.unique_name, bus.n_messages + 1, 1, n_fds=count)
        msg.fds = FdSet([os.open("/dev/null", os.O_RDONLY) for _ in range(count)])
        before = victim.queue.n_fds
        bus.dispatch(sender, msg)
        return bool(victim.queue.n_fds > before)

    hostile = corebus.join(bus, HOSTILE)
    while pass_some(hostile, 4):
        pass
    assert victim.queue.n_fds == 20
    assert pass_some(kind, 2)
    assert not pass_some(kind, 2)
    # As with dbus-daemon, who has filled it with descriptors gets nothing else in either.
    assert not reaches(bus, hostile, victim, 900)
    assert reaches(bus, kind, victim, 900)
    bus.disconnect(victim)
    assert bus.accounts.user(HOSTILE).fds == 0


def test_connections() -> None:
    bus = corebus.make_bus(max_completed_connections=8, max_connections_per_user=100)
    for _ in range(8):
        corebus.join(bus, HOSTILE)
    with pytest.raises(Refused) as refused:
        corebus.join(bus, HOSTILE)
    assert refused.value.code == LIMITS
    first = [corebus.join(bus, KIND) for _ in range(2)]
    with pytest.raises(Refused):
        corebus.join(bus, KIND)
    corebus.join(bus, VICTIM)
    for conn in first:
        bus.disconnect(conn)
    corebus.join(bus, KIND)


def limited(request: Callable[..., object], *args: object) -> bool:
    """Whether the request is refused for a limit."""
    try:
        request(*args)
    except Refused as refused:
        return refused.code == LIMITS
    return False


def test_objects_of_a_user() -> None:
    """Many connections do not give one user more names, rules and calls than the bus can bear."""
    bus = corebus.make_bus(
        max_names_per_connection=3,
        max_match_rules_per_connection=2,
        max_replies_per_connection=2,
        max_connections_per_user=1000,
    )
    service = corebus.join(bus, VICTIM)
    refused = {"names": 0, "rules": 0, "calls": 0}
    for i in range(USER_OBJECTS * 2):
        conn = corebus.join(bus, HOSTILE)
        for j in range(2):
            name = b"com.example.N%dx%d" % (i, j)
            refused["names"] += limited(bus.request_name, conn, name, 0)
            refused["rules"] += limited(bus.add_match, conn, Rule(type=4))
            bus.front.take()
            bus.dispatch(conn, corebus.call(service.unique_name, j + 1))
            refused["calls"] += len(bus.front.take("refused"))
    user = bus.accounts.user(HOSTILE)
    assert user.names == 3 * USER_OBJECTS
    assert user.matches == 2 * USER_OBJECTS
    assert user.replies == 2 * USER_OBJECTS
    assert all(refused.values())
    kind = corebus.join(bus, KIND)
    bus.request_name(kind, b"com.example.Kind", 0)
    bus.add_match(kind, Rule(type=4))
    bus.front.take()
    bus.dispatch(kind, corebus.call(service.unique_name, 1))
    assert not bus.front.take("refused")


def test_limits_that_limit_nothing_are_cut() -> None:
    """The session bus of dbus-daemon allows 1 GB for each reader that stands still."""
    bus = corebus.make_bus(max_outgoing_bytes=10**9, max_outgoing_unix_fds=250_000)
    a, b = corebus.join(bus), corebus.join(bus)
    megabyte = {"signature": "ay", "values": [bytes(1 << 20)]}
    assert flood(bus, a, b, **megabyte) == KEPT_BYTES // (1 << 20)
    assert bus.pool.fds == KEPT_FDS
