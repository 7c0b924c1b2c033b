"""What a bus counts: each message once on each side, in the totals of users and names too, whoever
comes, goes and owns what meanwhile."""

from __future__ import annotations

from collections import Counter

import corebus
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jitney.broker import meter
from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.message import Message
from jitney.compat import wire

NAMES = (b"com.example.A", b"com.example.B")


class Clock:
    """Seconds, as the bus asks for them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def clocked() -> tuple[Bus, Clock]:
    bus = corebus.make_bus()
    bus.clock = clock = Clock()
    return bus, clock


def answer(caller: Connection, serial: int) -> Message:
    return corebus.message(
        wire.RETURN, serial + 1000, reply_serial=serial, destination=caller.unique_name
    )


@pytest.mark.parametrize(
    ("microseconds", "bucket"),
    [(-5, 0), (0, 0), (15, 0), (16, 1), (31, 1), (32, 2), (1 << 20, 17), ((16 << 20) - 1, 20),
     (16 << 20, 21), (1 << 60, 21)],
)  # fmt: skip
def test_buckets(microseconds: int, bucket: int) -> None:
    histogram = meter.Histogram()
    histogram.note(microseconds)
    assert histogram.values().index(1) == bucket
    assert (histogram.count, sum(histogram.values())) == (1, 1)
    assert histogram.sum == max(0, microseconds)
    assert len(histogram.values()) == meter.BUCKETS


def test_by_type_and_in_bytes() -> None:
    bus, _ = clocked()
    a, b = corebus.join(bus), corebus.join(bus)
    corebus.received(a), corebus.received(b)
    before = b.counts.traffic()[3]
    bus.dispatch(a, corebus.call(b.unique_name, 5))
    bus.dispatch(a, corebus.signal(6, destination=b.unique_name))
    bus.dispatch(b, answer(a, 5))
    sent, sent_bytes, _, _ = a.counts.traffic()
    assert sent == [0, 1, 0, 0, 1]
    size = corebus.call(b.unique_name, 5).size
    size += corebus.signal(6, destination=b.unique_name).size
    assert sent_bytes == size
    _, _, received, received_bytes = b.counts.traffic()
    assert received == [0, 1, 0, 0, 1]
    assert received_bytes - before == b.queue.size
    assert b.counts.traffic()[0] == [0, 0, 1, 0, 0]


def test_what_nobody_counts() -> None:
    bus = corebus.make_bus()
    bus.metered = False
    a, b = corebus.join(bus), corebus.join(bus)
    bus.dispatch(a, corebus.call(b.unique_name, 5))
    bus.dispatch(b, answer(a, 5))
    assert a.counts is None
    bus.settle(a)
    bus.disconnect(a)
    assert a.user.totals is None
    assert bus.accounts.moment == 0


def test_time_to_reply() -> None:
    bus, clock = clocked()
    a, b = corebus.join(bus), corebus.join(bus)
    for serial in (1, 2):
        bus.dispatch(a, corebus.call(b.unique_name, serial))
    clock.now += 0.001
    bus.dispatch(a, corebus.call(b.unique_name, 3))
    moment = bus.accounts.moment
    assert bus.replies.oldest_owed(b) == moment - 1000
    assert [serial for _, serial, _ in bus.replies.owed(b, 2)] == [1, 2]
    assert [since for _, _, since in bus.replies.owed(b, 9)] == [moment - 1000] * 2 + [moment]
    assert (a.n_calls, b.n_owes) == (3, 3)
    clock.now += 0.001
    for serial in (2, 1, 3):
        bus.dispatch(b, answer(a, serial))
    assert (a.n_calls, b.n_owes, bus.replies.oldest_owed(b)) == (0, 0, 0)
    assert b.counts.replies.sum == 2000 + 2000 + 1000
    assert a.counts.replies is None


def test_time_in_the_queue() -> None:
    bus, clock = clocked()
    a, b = corebus.join(bus), corebus.join(bus)
    corebus.received(b)
    bus.dispatch(a, corebus.signal(1, destination=b.unique_name))
    first = bus.accounts.moment
    assert b.queue.oldest() == first
    clock.now += 1
    bus.dispatch(a, corebus.signal(2, destination=b.unique_name))
    assert b.queue.oldest() == first
    gone = b.counts.gone
    corebus.received(b)
    assert b.queue.oldest() == 0
    assert b.counts.gone == gone + 2
    # The second did not wait; so did those before it.
    assert (b.counts.waits.count, b.counts.waits.sum) == (1, 1_000_000)
    buckets, total = b.counts.waited()
    assert (sum(buckets), total) == (gone + 2, 1_000_000)
    assert buckets[0] == gone + 1


def test_refusals_and_drops() -> None:
    bus = corebus.make_bus(max_outgoing_bytes=0, max_replies_per_connection=0)
    a, b = corebus.join(bus), corebus.join(bus, 1001)
    corebus.received(b)
    bus.add_match(b, corebus_rule())
    big = {"signature": "ay", "values": [bytes(5000)]}
    bus.dispatch(a, corebus.call(b.unique_name, 1))
    assert (a.counts.limited, a.counts.denied) == (1, 0)
    for serial in range(10):
        bus.dispatch(a, corebus.signal(serial + 2, **big))
    assert b.dropped > 0
    bus.settle(b)
    assert b.user.totals.dropped == b.dropped


def corebus_rule():  # type: ignore[no-untyped-def]
    from jitney.compat import matchrule

    return matchrule.parse(b"type='signal'")


def test_names_do_not_use_up_memory() -> None:
    bus = corebus.make_bus()
    totals = meter.NameTotals(bus.names)
    keeper = corebus.join(bus)
    for i in range(10):
        bus.request_name(keeper, b"com.example.Kept%d" % i, 0)
        totals.of(b"com.example.Kept%d" % i)
    kept = totals.of(b"com.example.Kept3")
    for i in range(5 * meter.MAX_NAMES):
        totals.of(b"com.example.N%d" % i)
    assert len(totals.by_name) <= meter.MAX_NAMES
    assert totals.of(b"com.example.Kept3") is kept
    for i in range(meter.MAX_NAMES):
        bus.request_name(keeper, b"com.example.N%d" % i, 0)
        totals.of(b"com.example.N%d" % i)
    assert totals.of(b"com.example.One.More") is totals.rest


def test_one_who_owns_very_many_names_is_not_gone_through_each_time() -> None:
    """What each further name of it costs does not grow; what it did is counted once."""
    bus = corebus.make_bus()
    one, other = corebus.join(bus), corebus.join(bus)
    totals = bus.name_totals
    for i in range(3 * meter.EACH_NAME):
        bus.request_name(one, b"com.example.N%d" % i, 0)
        bus.dispatch(one, corebus.call(other.unique_name, i + 1, 1))
    bus.settle(one)
    assert len(totals.by_name) == meter.EACH_NAME
    # To the first, each call counts; to the others together those since there were others.
    assert totals.by_name[b"com.example.N0"].traffic()[0][1] == 3 * meter.EACH_NAME
    assert totals.rest.traffic()[0][1] == 2 * meter.EACH_NAME


class Ledger(RuleBasedStateMachine):
    """Against a ledger by user and name that is written message by message."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = corebus.make_bus()
        self.conns = [corebus.join(self.bus, 1000 + i % 2) for i in range(4)]
        self.users: Counter[int] = Counter()
        self.names: Counter[bytes] = Counter()
        self.seen: Counter[object] = Counter()
        self.serial = 0

    @rule(a=st.integers(0, 3), b=st.integers(0, 3))
    def signal(self, a: int, b: int) -> None:
        self.serial += 1
        sender = self.conns[a]
        self.users[sender.user.uid] += 1
        for name in NAMES:
            owner = self.bus.lookup(name)
            if owner is sender:
                self.names[name] += 1
        self.bus.dispatch(
            sender, corebus.signal(self.serial, destination=self.conns[b].unique_name)
        )
        corebus.received(self.conns[b])

    @rule(a=st.integers(0, 3), name=st.sampled_from(NAMES), flags=st.integers(0, 7))
    def request(self, a: int, name: bytes, flags: int) -> None:
        self.bus.request_name(self.conns[a], name, flags)

    @rule(a=st.integers(0, 3), name=st.sampled_from(NAMES))
    def release(self, a: int, name: bytes) -> None:
        self.bus.release_name(self.conns[a], name)

    @rule(a=st.integers(0, 3))
    def replace(self, a: int) -> None:
        uid = self.conns[a].user.uid
        self.bus.disconnect(self.conns[a])
        self.conns[a] = corebus.join(self.bus, uid)

    @rule(a=st.integers(0, 3))
    def look(self, a: int) -> None:
        self.bus.settle(self.conns[a])

    @invariant()
    def totals_only_grow(self) -> None:
        found: dict[object, int] = {
            who.uid: sum(who.totals.traffic()[0])
            for who in self.bus.accounts.users
            if who.totals is not None
        }
        found |= {
            name: sum(total.traffic()[0]) for name, total in self.bus.name_totals.by_name.items()
        }
        for key, value in found.items():
            assert value >= self.seen[key]
            self.seen[key] = value

    def teardown(self) -> None:
        for conn in self.conns:
            self.bus.settle(conn)
        for who in self.bus.accounts.users[1:]:
            sent = sum(who.totals.traffic()[0]) if who.totals is not None else 0
            assert sent == self.users[who.uid]
        for name in NAMES:
            total = self.bus.name_totals.by_name.get(name)
            assert (sum(total.traffic()[0]) if total is not None else 0) == self.names[name]


Ledger.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = Ledger.TestCase
