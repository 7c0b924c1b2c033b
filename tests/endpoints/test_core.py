"""What endpoints let pass in the core, against an oracle that knows sets and loops only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import corebus
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.endpoint import BROADCASTS, CALLS, OWN, SEE, TALK, Endpoint, Grant
from jitney.broker.errors import Refused
from jitney.broker.learning import Learned
from jitney.broker.match import Rule
from jitney.broker.message import Message
from jitney.compat import wire

NAMES = (b"com.a", b"com.a.B", b"com.a.B.C", b"com.aB", b"org.x")
PATHS = (b"/", b"/o", b"/o/p", b"/op")
INTERFACES = (b"com.I", b"com.I.J")
MEMBERS = (b"M", b"N")
DRIVER = b"org.freedesktop.DBus"


class Front(corebus.RecordingFront):
    """Announces owners as the driver does, and keeps what was turned back."""

    def name_owner_changed(
        self, text: bytes, old: Connection | None, new: Connection | None
    ) -> None:
        owners = [peer.unique_name if peer is not None else b"" for peer in (old, new)]
        self.bus.tell(
            corebus.message(
                wire.SIGNAL, 1, path=b"/org/freedesktop/DBus", interface=DRIVER,
                member=b"NameOwnerChanged", signature="sss", values=(text, *owners),
            )
        )  # fmt: skip


def make_bus() -> Bus:
    bus = corebus.make_bus()
    front = Front()
    front.bus = bus
    bus.front = front
    return bus


def fits(grant: Grant, what: int, about: tuple[bytes, bytes, bytes]) -> bool:
    path, interface, member = about
    if grant.level < TALK or not grant.what & what:
        return False
    if grant.path is not None:
        below = grant.below and path.startswith(grant.path.rstrip(b"/") + b"/")
        if grant.below and grant.path == b"/":
            below = False  # "//*" names nothing: a path is compared as it stands
        if path != grant.path and not below:
            return False
    return grant.interface in (None, interface) and grant.member in (None, member)


def holds(grant: Grant, name: bytes) -> bool:
    return name == grant.name or (grant.subtree and name.startswith(grant.name + b"."))


@dataclass
class Oracle:
    """Everything about one endpoint, found out anew for each question."""

    bus: Bus
    grants: list[Grant]
    seen: dict[Connection, set[Connection]] = field(default_factory=dict)

    def of_name(self, name: bytes) -> list[Grant]:
        return [grant for grant in self.grants if holds(grant, name)]

    def of_peer(self, peer: Connection) -> list[Grant]:
        return [grant for name in peer.owned for grant in self.of_name(name)]

    @staticmethod
    def level(grants: list[Grant]) -> int:
        return max([grant.level for grant in grants], default=0)

    def sees(self, client: Connection, name: bytes) -> bool:
        if not name.startswith(b":"):
            return self.level(self.of_name(name)) >= SEE
        peer = self.bus.lookup(name)
        return peer is not None and (
            peer is client or peer in self.seen[client] or self.level(self.of_peer(peer)) >= SEE
        )

    def sends(self, client: Connection, name: bytes, about: tuple[bytes, bytes, bytes]) -> str:
        peer = self.bus.lookup(name)
        if peer is client and name.startswith(b":"):
            return "passed"
        if not self.sees(client, name):
            return "hidden"
        grants = self.of_name(name)
        if name.startswith(b":"):
            assert peer is not None
            grants = self.of_peer(peer)
        if self.level(grants) == OWN or any(fits(grant, CALLS, about) for grant in grants):
            return "passed"
        return "denied"

    def hears(
        self, client: Connection, sender: Connection, about: tuple[bytes, bytes, bytes]
    ) -> bool:
        grants = self.of_peer(sender)
        level = self.level(grants)
        return (
            sender is client
            or level == OWN
            or any(fits(grant, BROADCASTS, about) for grant in grants)
        )


GRANTS = st.lists(
    st.one_of(
        st.builds(
            Grant,
            st.sampled_from(NAMES),
            st.sampled_from([SEE, TALK, OWN]),
            st.booleans(),
        ),
        st.builds(
            lambda name, subtree, what, path, below, interface, member: Grant(
                name, TALK, subtree, what, path, below and path is not None, interface,
                member if interface is not None else None,
            ),
            st.sampled_from(NAMES),
            st.booleans(),
            st.sampled_from([CALLS, BROADCASTS]),
            st.sampled_from([None, *PATHS[1:]]),
            st.booleans(),
            st.sampled_from([None, *INTERFACES]),
            st.sampled_from([None, *MEMBERS]),
        ),
    ),
    max_size=4,
)  # fmt: skip
WHO = st.integers(0, 4)
ABOUT = st.tuples(st.sampled_from(PATHS), st.sampled_from(INTERFACES), st.sampled_from(MEMBERS))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), WHO, st.sampled_from(NAMES)),
        st.tuples(st.just("own"), WHO, st.sampled_from(NAMES)),
        st.tuples(st.just("release"), WHO, st.sampled_from(NAMES)),
        st.tuples(st.just("call"), WHO, st.sampled_from(NAMES), ABOUT, st.sampled_from([0, 1])),
        st.tuples(st.just("call"), WHO, WHO, ABOUT, st.sampled_from([0, 1])),
        st.tuples(st.just("signal"), WHO, WHO, ABOUT),
        st.tuples(st.just("broadcast"), WHO, ABOUT),
        st.tuples(st.just("reply"), st.integers(0, 20)),
        st.tuples(st.just("unasked"), WHO, WHO),
        st.tuples(st.just("leave"), WHO),
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(GRANTS, STEPS)
def test_passes_what_the_oracle_lets_pass(
    grants: list[Grant], steps: list[tuple[Any, ...]]
) -> None:
    bus = make_bus()
    endpoint = Endpoint(b"e", grants)
    bus.add_endpoint(endpoint)
    oracle = Oracle(bus, grants)
    everybody: list[Connection] = []
    for i in range(5):
        conn = bus.connect(1000)
        conn.accepts_fds = True
        if i < 2:
            # The first two are clients of the endpoint.
            endpoint.enter(conn)
            oracle.seen[conn] = set()
        bus.hello(conn)
        bus.announce(conn)
        bus.add_match(conn, Rule(type=wire.SIGNAL))
        everybody.append(conn)
    clients = everybody[:2]
    for conn in everybody:
        corebus.received(conn)
    pending: list[tuple[Connection, Connection, int]] = []
    serial = 0

    def here(conn: Connection) -> bool:
        return conn.id in bus.connections

    def got(conn: Connection) -> list[Message]:
        return corebus.received(conn) if here(conn) else []

    def expect_owner_changes(before: dict[Connection, set[bytes]], gone: Connection | None) -> None:
        """Who heard of what: each client of the names that it sees, by the names alone."""
        after = {conn: set(conn.owned) for conn in everybody if here(conn)}
        lost = {(name, conn) for conn in before for name in before[conn] - after.get(conn, set())}
        won = {(name, conn) for conn in after for name in after[conn] - before.get(conn, set())}
        changed = {name for name, _ in lost | won}
        for client in clients:
            if not here(client):
                continue
            want = {name for name in changed if oracle.sees(client, name)}
            for name, conn in lost:
                if oracle.level(oracle.of_name(name)) >= SEE and conn is not client:
                    oracle.seen[client].add(conn)
            if gone is not None and gone in oracle.seen[client]:
                want.add(gone.unique_name)
            heard = {
                wire.unmarshal(msg.signature, msg.body(), False)[0].encode() for msg in got(client)
            }
            assert heard == want

    for step in steps:
        serial += 1
        kind = step[0]
        if kind == "reply":
            if not pending:
                continue
            caller, callee, asked = pending.pop(step[1] % len(pending))
            if not (here(caller) and here(callee)):
                continue
            bus.dispatch(
                callee,
                corebus.message(
                    wire.RETURN, serial, reply_serial=asked, destination=caller.unique_name
                ),
            )
            # An answer that is awaited passes, whoever the two are.
            assert [msg.reply_serial for msg in got(caller)] == [asked]
            if caller in clients and callee is not caller:
                oracle.seen[caller].add(callee)
            continue
        actor = everybody[step[1]]
        if not here(actor):
            continue
        owned = {conn: set(conn.owned) for conn in everybody if here(conn)}
        if kind == "own":
            name = step[2]
            try:
                bus.request_name(actor, name, 3)
                done = True
            except Refused:
                done = False
            assert done == (actor not in clients or oracle.level(oracle.of_name(name)) == OWN)
            expect_owner_changes(owned, None)
        elif kind == "release":
            bus.release_name(actor, step[2])
            expect_owner_changes(owned, None)
        elif kind == "leave":
            oracle_sees = [
                client
                for client in clients
                if here(client) and oracle.sees(client, actor.unique_name)
            ]
            bus.disconnect(actor)
            for client in oracle_sees:
                if client is not actor:
                    oracle.seen[client].add(actor)
            expect_owner_changes(owned, actor)
        elif kind == "broadcast":
            path, interface, member = step[2]
            bus.dispatch(
                actor, corebus.signal(serial, path=path, interface=interface, member=member)
            )
            for conn in everybody:
                if not here(conn):
                    continue
                heard = bool(got(conn))
                if conn in clients:
                    assert heard == oracle.hears(conn, actor, step[2])
                    if heard and conn is not actor:
                        oracle.seen[conn].add(actor)
                else:
                    assert heard
        elif kind == "unasked":
            to = everybody[step[2]]
            if not here(to):
                continue
            reply = corebus.message(
                wire.RETURN, serial, reply_serial=0x7FFFFFFF, destination=to.unique_name
            )
            bus.dispatch(actor, reply)
            assert bool(got(to)) == (actor not in clients and to not in clients)
        else:
            name = step[2] if isinstance(step[2], bytes) else everybody[step[2]].unique_name
            to = bus.lookup(name)
            path, interface, member = step[3]
            flags = step[4] if kind == "call" else 1
            msg = corebus.message(
                wire.CALL if kind == "call" else wire.SIGNAL, serial, flags=flags,
                path=path, interface=interface, member=member, destination=name,
            )  # fmt: skip
            want = oracle.sends(actor, name, step[3]) if actor in clients else "passed"
            bus.front.take()
            bus.dispatch(actor, msg)
            back = bus.front.take("turned_back")
            if want != "passed":
                assert [event[4] for event in back] == [want == "hidden"]
                assert not any(got(conn) for conn in everybody)
                continue
            assert not back
            if to is None:
                continue
            assert [found.serial for found in got(to)] == [serial]
            if to in clients and to is not actor:
                oracle.seen[to].add(actor)
            if kind == "call" and not flags & 1:
                pending.append((actor, to, serial))
        for conn in everybody:
            got(conn)
    for client in clients:
        if not here(client):
            continue
        for conn in everybody:
            name = conn.unique_name
            assert (endpoint.level(client, name) >= SEE) == oracle.sees(client, name)
    for conn in everybody:
        if here(conn):
            bus.disconnect(conn)
    assert not endpoint.connections
    assert all(conn.seen is None and conn.seen_by is None for conn in everybody)


@settings(max_examples=150, deadline=None)
@given(GRANTS, st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
def test_every_message_to_and_of_every_name(grants: list[Grant], names: list[bytes]) -> None:
    """All of a small world, under any grants: by the name, by the unique name, and heard."""
    bus = make_bus()
    endpoint = Endpoint(b"e", grants)
    bus.add_endpoint(endpoint)
    oracle = Oracle(bus, grants)
    service, client = corebus.join(bus), corebus.join(bus)
    endpoint.enter(client)
    for name in names:
        bus.request_name(service, name, 0)
    abouts = [(path, *rest) for path in PATHS for rest in itertools.product(INTERFACES, MEMBERS)]
    for about in abouts:
        for name in (*NAMES, service.unique_name):
            oracle.seen[client] = set()
            path, interface, member = about
            msg = corebus.message(
                wire.CALL, 1, path=path, interface=interface, member=member, destination=name
            )
            verdict = endpoint.judge(client, msg, bus.lookup(name))
            assert ("passed", "denied", "hidden")[verdict] == oracle.sends(client, name, about)
    bus.add_match(client, Rule(type=wire.SIGNAL))
    for path, interface, member in abouts:
        bus.dispatch(service, corebus.signal(1, path=path, interface=interface, member=member))
        heard = bool(corebus.received(client))
        assert heard == oracle.hears(client, service, (path, interface, member))


def test_only_narrows() -> None:
    """A grant opens nothing that the bus's policy keeps shut."""
    bus = make_bus()
    endpoint = Endpoint(b"e", [Grant(b"com.a", OWN)])
    bus.add_endpoint(endpoint)

    class Shut(corebus.OpenPolicy):
        send_open = False
        send_types = 0
        matched = 1
        log = False

        def may_own(self, name: bytes) -> bool:
            return False

        def may_send(self, *about: Any) -> bool:
            return False

        def types_to(self, receiver: Connection) -> int:
            return 0

    service = corebus.join(bus)
    bus.request_name(service, b"com.a", 0)
    client = corebus.join(bus)
    endpoint.enter(client)
    bus.dispatch(client, corebus.call(b"com.a"))
    assert len(corebus.received(service)) == 1
    bus.set_policy(client, Shut())
    bus.dispatch(client, corebus.call(b"com.a", 2))
    assert corebus.received(service) == []
    try:
        bus.request_name(client, b"com.a", 0)
        raise AssertionError("owned what the bus does not let it own")
    except Refused:
        pass


def test_without_filtering_clients_are_only_told_apart() -> None:
    bus = make_bus()
    endpoint = Endpoint(b"e", filtering=False)
    bus.add_endpoint(endpoint)
    service, client = corebus.join(bus), corebus.join(bus)
    endpoint.enter(client)
    bus.add_match(client, Rule(type=wire.SIGNAL))
    bus.dispatch(client, corebus.call(service.unique_name))
    assert len(corebus.received(service)) == 1
    bus.dispatch(service, corebus.signal())
    assert [msg.member for msg in corebus.received(client)] == [b"S"]
    bus.request_name(client, b"com.mine", 0)
    assert bus.lookup(b"com.mine") is client


def test_verdicts_are_bounded() -> None:
    """Names below a grant are endless; what is kept of them is not."""
    bus = make_bus()
    endpoint = Endpoint(b"e", [Grant(b"com.a", TALK, True)])
    bus.add_endpoint(endpoint)
    client = corebus.join(bus)
    endpoint.enter(client)
    for i in range(10000):
        assert endpoint.level(client, b"com.a.N%d" % i) == TALK
        assert endpoint.level(client, b"com.b.N%d" % i) == 0


def test_learns_names_not_unique_names() -> None:
    bus = make_bus()
    learned = Learned()
    endpoint = Endpoint(b"e", filtering=False, learned=learned)
    bus.add_endpoint(endpoint)
    service, nameless, client = corebus.join(bus), corebus.join(bus), corebus.join(bus)
    bus.request_name(service, b"com.a", 0)
    endpoint.enter(client)
    bus.add_match(client, Rule(type=wire.SIGNAL))
    bus.dispatch(client, corebus.call(service.unique_name))
    bus.dispatch(client, corebus.call(b"com.a", 2))
    bus.dispatch(client, corebus.call(nameless.unique_name, 3))
    bus.dispatch(service, corebus.signal())
    assert learned.used == {
        ("call", b"com.a", b"com.example.I.M"): 2,
        ("broadcast", b"com.a", b"com.example.I.S"): 1,
    }
    assert learned.n_nameless == 1


def test_who_never_says_hello_is_not_remembered() -> None:
    bus = make_bus()
    endpoint = Endpoint(b"box", [Grant(b"com.a", SEE)])
    bus.add_endpoint(endpoint)
    owner = corebus.join(bus)
    for _ in range(3):
        newcomer = bus.connect(1000)
        endpoint.enter(newcomer)
        bus.request_name(owner, b"com.a", 0)
        bus.release_name(owner, b"com.a")
        bus.disconnect(newcomer)
    assert not owner.seen_by
