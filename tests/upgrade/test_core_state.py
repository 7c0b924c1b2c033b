"""A bus that is exported and restored at any moment answers as one that never was: two buses get
the same things to do, and one of them is another one every now and then."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import corebus
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.endpoint import CALLS, OWN, TALK, Endpoint, Grant
from jitney.broker.errors import Refused
from jitney.broker.export import Sink, export
from jitney.broker.fds import FdSet
from jitney.broker.learning import Learned
from jitney.broker.match import Rule
from jitney.broker.restore import BadState, Source, restore
from jitney.broker.trace import Tracer
from jitney.compat import wire
from jitney.compat.upgrade import form

LIMITS = {
    "max_outgoing_bytes": 150_000,
    "max_outgoing_unix_fds": 20,
    "max_replies_per_connection": 4,
    "reply_timeout": 10_000,
}
WHO = st.integers(0, 4)
GRANTS = [
    Grant(b"com.example.A", TALK),
    Grant(b"com.example.A", OWN, True),
    Grant(b"com.example.B", TALK, False, CALLS, b"/a", True, b"com.example.I", b"M"),
]
NAMES = [b"com.example.A", b"com.example.B", b"com.example.A.C"]
SIZES = st.sampled_from([0, 1, 100, 5000, 16383, 16384, 40000])
CUTS = st.sampled_from([1, 5, 100, 4000, 20000, 100000])
RULES = [
    {},
    {"type": 4, "interface": b"com.example.I"},
    {"sender": b"com.example.A"},
    {"sender": b":1.1", "member": b"S"},
    {"sender": b":1.77"},
    {"path_namespace": b"/a", "args": {0: ("n", b"com.example")}},
    {"args": {1: ("p", b"/a/"), 3: ("s", "\u00e9\u4e16".encode())}},
    {"destination": b":1.2", "eavesdrop": True},
    {"eavesdrop": True},
]


def moved(bus: Bus, conns: list[Connection]) -> tuple[Bus, list[Connection]]:
    """The same bus in another place, by way of bytes, and the same connections of it."""
    newcomers = [conn for conn in conns if conn.id == 0 and conn.state == 0]
    sink = Sink()
    state, places = export(bus, newcomers, sink)
    before = {conn: (conn.queue.peek(), conn.queue.charges_list()) for conn in conns}
    text, blobs, sets = form.unpack(b"".join(form.pack(state, sink.blobs, sink.sets)))
    for conn in conns:
        assert before[conn] == (conn.queue.peek(), conn.queue.charges_list())
    fresh = corebus.make_bus(**LIMITS)
    fresh.clock = bus.clock
    fresh.front.events = bus.front.events
    # As they come out of a socket: other numbers, the same files.
    source = Source(blobs, [[os.dup(fd) for fd in fds] for fds in sets])
    found = restore(fresh, text, source, lambda tracer: None)
    for conn in found:
        fresh.set_policy(conn, corebus.OpenPolicy())
    again, _ = export(fresh, [conn for conn in found if conn.id == 0], Sink())
    assert json.loads(json.dumps(again)) == text, "what was restored is not what was exported"
    return fresh, [found[places[conn]] if conn in places else conn for conn in conns]


class Twins(RuleBasedStateMachine):
    """`self.buses`: the one that stays and the one that moves, each with its connections."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.serial = 0
        self.buses: list[tuple[Bus, list[Connection]]] = []
        for _ in range(2):
            bus = corebus.make_bus(**LIMITS)
            bus.clock = lambda: self.now
            conns = [corebus.join(bus, 1000 + i // 2, fds=i != 3) for i in range(4)]
            newcomer = bus.connect(1001)
            bus.add_endpoint(Endpoint(b"box", GRANTS, learned=Learned()))
            bus.endpoints[0].enter(conns[2])
            bus.emit(newcomer, corebus.signal(7, destination=b":1.99").wire())
            self.buses.append((bus, [*conns, newcomer]))

    def both(self, do: Any) -> None:
        """The same on both buses, with the same outcome."""
        outcomes = []
        for bus, conns in self.buses:
            try:
                outcomes.append(do(bus, conns))
            except Refused as refused:
                outcomes.append((refused.code, refused.text))
        assert outcomes[0] == outcomes[1]

    @rule()
    def move(self) -> None:
        self.buses[1] = moved(*self.buses[1])

    @rule(who=WHO, to=WHO, size=SIZES, fds=st.integers(0, 3), flags=st.integers(0, 1))
    def call(self, who: int, to: int, size: int, fds: int, flags: int) -> None:
        self.serial += 1
        serial = self.serial

        def do(bus: Bus, conns: list[Connection]) -> None:
            dest = conns[to].unique_name or b"com.example.A"
            more = {"signature": "ay", "values": [bytes(size)]} if size else {}
            msg = corebus.call(dest, serial, flags, n_fds=fds, **more)
            if fds:
                msg.fds = FdSet([os.open("/dev/null", os.O_RDONLY) for _ in range(fds)])
            if conns[who].state == 1:
                bus.dispatch(conns[who], msg)

        self.both(do)

    @rule(who=WHO, to=WHO, serial=st.integers(1, 40))
    def reply(self, who: int, to: int, serial: int) -> None:
        def do(bus: Bus, conns: list[Connection]) -> None:
            if conns[who].state == 1 and conns[to].id:
                reply = corebus.message(
                    wire.RETURN, 9, reply_serial=serial, destination=conns[to].unique_name
                )
                bus.dispatch(conns[who], reply)

        self.both(do)

    @rule(who=WHO, size=SIZES, fds=st.integers(0, 1))
    def signal(self, who: int, size: int, fds: int) -> None:
        def do(bus: Bus, conns: list[Connection]) -> None:
            more = {"signature": "ss", "values": ["com.example.X", "x" * size]}
            msg = corebus.signal(3, n_fds=fds, **more)
            if fds:
                msg.fds = FdSet([os.open("/dev/null", os.O_RDONLY)])
            if conns[who].state == 1:
                bus.dispatch(conns[who], msg)

        self.both(do)

    @rule(who=WHO, name=st.sampled_from(NAMES), flags=st.integers(0, 7))
    def request(self, who: int, name: bytes, flags: int) -> None:
        self.both(
            lambda bus, conns: conns[who].state == 1 and bus.request_name(conns[who], name, flags)
        )

    @rule(who=WHO, name=st.sampled_from(NAMES))
    def release(self, who: int, name: bytes) -> None:
        self.both(lambda bus, conns: conns[who].state == 1 and bus.release_name(conns[who], name))

    @rule(who=WHO, which=st.sampled_from(RULES))
    def add_match(self, who: int, which: dict[str, Any]) -> None:
        self.both(
            lambda bus, conns: conns[who].state == 1 and bus.add_match(conns[who], Rule(**which))
        )

    @rule(who=WHO, which=st.sampled_from(RULES))
    def remove_match(self, who: int, which: dict[str, Any]) -> None:
        self.both(
            lambda bus, conns: conns[who].state == 1 and bus.remove_match(conns[who], Rule(**which))
        )

    @rule(who=WHO, n=CUTS)
    def read(self, who: int, n: int) -> None:
        def do(bus: Bus, conns: list[Connection]) -> bytes:
            queue = conns[who].queue
            data = queue.peek()[:n]
            if data:
                queue.sent(len(data))
            return data

        self.both(do)

    @rule(who=WHO)
    def come_again(self, who: int) -> None:
        """One leaves and another one comes."""

        def do(bus: Bus, conns: list[Connection]) -> None:
            bus.disconnect(conns[who])
            conns[who] = corebus.join(bus, 1000 + who // 2)
            if who == 2:
                bus.endpoints[0].enter(conns[who])

        self.both(do)

    @rule(who=WHO)
    def monitor(self, who: int) -> None:
        def do(bus: Bus, conns: list[Connection]) -> None:
            if conns[who].state == 1:
                bus.become_monitor(conns[who], [Rule(type=1), Rule(sender=b":1.1")])

        self.both(do)

    @rule(who=WHO, every=st.integers(1, 2), payload=st.sampled_from([0, 40]))
    def trace(self, who: int, every: int, payload: int) -> None:
        def do(bus: Bus, conns: list[Connection]) -> None:
            conn = conns[who]
            if conn.state != 1:
                return
            rules = [Rule(type=1)]
            head = corebus.signal(1, destination=conn.unique_name).wire()
            conn.tracer = Tracer(bus, conn, head, lambda tracer: None, rules, None, every, payload)
            bus.become_monitor(conn, [*rules, Rule(type=2)])

        self.both(do)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.both(lambda bus, conns: bus.expire())

    @invariant()
    def twins(self) -> None:
        (one, its), (other, others) = self.buses
        assert sights(one, its) == sights(other, others)

    def teardown(self) -> None:
        for bus, conns in self.buses:
            for conn in conns:
                bus.disconnect(conn)
            assert all(user.idle() for user in bus.accounts.users)
            assert not len(bus.replies)
            assert not len(bus.match_index)
            assert not len(bus.names)


def sights(bus: Bus, conns: list[Connection]) -> list[Any]:
    """All that can be seen of a bus."""
    for conn in conns:
        bus.settle(conn)
    found: list[Any] = [
        [
            (
                conn.unique_name, conn.state, conn.queue.peek(), conn.queue.n_fds, conn.n_rules,
                [len(fds) for _, fds in conn.queue.runs() if fds], list(conn.names),
                list(conn.owned), conn.n_calls, conn.n_owes, conn.dropped, conn.peak_size,
                [(rule.number, rule.sender, rule.eavesdrop) for rule in conn.rules],
                [(who.unique_name, serial) for who, serial, _ in bus.replies.owed(conn, 99)],
                conn.counts.traffic(), conn.counts.waited(), conn.counts.gone,
                [(size, n) for size, n, _ in conn.queue.charges_list()],
            )
            for conn in conns
        ],
        [
            (user.uid, user.bytes, user.fds, user.kept_bytes, user.kept_fds, user.connections,
             user.matches, user.names, user.replies, user.totals and user.totals.traffic())
            for user in bus.accounts.users
        ],
        [(name.text, [(c.conn.unique_name, c.flags) for c in name.queue]) for name in bus.names],
        [conn.unique_name for conn in bus.monitors],
        (bus.last_id, bus.n_messages, bus.n_denied, bus.n_dropped, bus.peak_rules, bus.peak_names),
        bus.replies.next_deadline(),
        {name: counts.traffic() for name, counts in bus.name_totals.by_name.items()},
        [sorted(peer.id for peer in conn.seen or ()) for conn in conns],
        [sorted(peer.id for peer in conn.seen_by or ()) for conn in conns],
        [
            (e.name, e.n_refused, e.learned.used, e.learned.missed, e.learned.n_nameless,
             sorted(conn.id for conn in e.connections))
            for e in bus.endpoints
        ],
    ]  # fmt: skip
    # Whose queue is yet to be looked at is no part of the state: that happens first.
    found.append([_plain(event) for event in bus.front.events if event[0] != "wake"])
    return found


def _plain(event: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.label if isinstance(x, Connection) else x if isinstance(x, bytes | str | int) else ""
        for x in event
    )


Twins.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_twins = Twins.TestCase


def a_bus() -> tuple[Bus, list[Connection]]:
    """One with something of everything."""
    bus = corebus.make_bus(**LIMITS)
    conns = [corebus.join(bus, 1000 + i) for i in range(3)]
    bus.request_name(conns[0], b"com.example.A", 0)
    bus.request_name(conns[1], b"com.example.A", 0)
    bus.add_match(conns[1], Rule(interface=b"com.example.I"))
    bus.dispatch(conns[0], corebus.call(conns[1].unique_name, 5))
    bus.dispatch(conns[0], corebus.signal(6))
    conns[1].queue.sent(10)
    return bus, conns


def a_state() -> tuple[dict[str, Any], Sink]:
    bus, _ = a_bus()
    sink = Sink()
    return export(bus, [], sink)[0], sink


WRONG = {
    "a user's sum": lambda s: s["users"][1]["sums"].__setitem__(0, 7),
    "a user twice": lambda s: s["users"][2].update(uid=1000),
    "an owner who is not": lambda s: s["names"][0][1].__setitem__(0, [7, 0]),
    "a name twice": lambda s: s["names"].append(s["names"][0]),
    "a name unknown to its owner": lambda s: s["connections"][0].pop("names"),
    "an owner who only waits": lambda s: s["connections"][1].update(owned=["com.example.A"]),
    "a connection twice": lambda s: s["connections"][1].update(id=1),
    "a connection to come": lambda s: s["connections"][1].update(id=99),
    "bytes nobody is charged for": lambda s: s["connections"][1]["charges"].pop(),
    "more left than there is": lambda s: s["connections"][1]["charges"][0].__setitem__(0, 10**6),
    "a tally of others": lambda s: s["tallies"][0].__setitem__(0, 2),
    "a rule missing": lambda s: s["rules"].pop(),
    "a reply missing": lambda s: s["replies"].pop(),
    "a reply twice": lambda s: s["replies"].append(s["replies"][0]),
    "a monitor that is none": lambda s: s["monitors"].append(1),
    "one who sees, and is nowhere": lambda s: s["connections"][0].update(seen=[1]),
    "an endpoint that is not there": lambda s: s["connections"][0].update(endpoint=3),
    "nothing": lambda s: s.clear(),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_add_up_is_rejected(what: str) -> None:
    state, sink = a_state()
    state = copy.deepcopy(state)
    restore(corebus.make_bus(**LIMITS), state, Source(sink.blobs, []))
    WRONG[what](state)
    with pytest.raises((BadState, LookupError)):
        restore(corebus.make_bus(**LIMITS), state, Source(sink.blobs, []))


def test_only_an_unused_bus_is_filled() -> None:
    state, sink = a_state()
    bus = corebus.make_bus()
    corebus.join(bus)
    with pytest.raises(BadState, match="in use"):
        restore(bus, state, Source(sink.blobs, []))


def test_damage_is_noticed() -> None:
    state, sink = a_state()
    data = b"".join(form.pack(state, sink.blobs, sink.sets))
    assert form.unpack(data)[0] == json.loads(json.dumps(state))
    for i in range(0, len(data), 7):
        damaged = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(BadState):
            form.unpack(damaged)
        with pytest.raises(BadState):
            form.unpack(data[:i])


def test_descriptors_that_nobody_took_are_closed() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    source = Source([], [[fd]])
    del source
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
