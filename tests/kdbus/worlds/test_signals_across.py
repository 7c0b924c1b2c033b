"""Signals between the worlds, and bodies that go through both.

Invariant: a subscriber hears the same of a signal in either world, whichever it was sent in; the
judge is an oracle of a few lines that knows nothing of indexes, atoms or bloom filters.
"""

from __future__ import annotations

from typing import Any

import classic_messages
import corebus
import pytest
from corebus import received
from dbus_values import signatures, value_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdbuskit import message
from unnamed import unnamed
from worldskit import (
    Shared,
    call,
    dbus2,
    hear,
    listen,
    listen_to_own,
    notices,
    send,
    signal,
    tell,
    unique,
)

from jitney.broker.atoms import Atoms
from jitney.broker.fds import FdSet
from jitney.broker.kdbus import constants as c
from jitney.broker.match import MatchIndex, Rule
from jitney.broker.message import Message
from jitney.compat import wire
from jitney.kdbus import transcode
from jitney.kdbus.transcode import Dbus2Message

NAMES = [b"com.example.A", b"com.example.B"]
PATHS = [b"/", b"/a", b"/a/b", b"/ab"]
INTERFACES = [b"com.example.I", b"com.example.J"]
MEMBERS = [b"S", b"T"]
STRINGS = [b"", b"com", b"com.example.A", b"/a", b"/a/b", b"/a/"]


@pytest.fixture
def shared() -> Shared:
    return Shared()


def maybe(values: list[bytes]) -> st.SearchStrategy[bytes | None]:
    return st.none() | st.sampled_from(values)


keys = st.fixed_dictionaries(
    {
        "type": st.sampled_from([0, 4, 4, 4, 1]),
        "sender": maybe([*NAMES, b":1.2", b":1.3", b":1.9"]),
        "interface": maybe(INTERFACES),
        "member": maybe(MEMBERS),
        "path": maybe(PATHS),
        "path_namespace": maybe(PATHS),
        "args": st.dictionaries(
            st.integers(0, 2),
            st.tuples(st.sampled_from("sp"), st.sampled_from(STRINGS)),
            max_size=2,
        ),
    }
).map(lambda found: found | ({"path_namespace": None} if found["path"] is not None else {}))

signals = st.fixed_dictionaries(
    {
        "path": st.sampled_from(PATHS),
        "interface": st.sampled_from(INTERFACES),
        "member": st.sampled_from(MEMBERS),
        "args": st.lists(st.sampled_from(STRINGS), max_size=3),
    }
)


def arg_fits(kind: str, want: bytes, have: bytes) -> bool:
    if kind == "s":
        return have == want
    return (
        have == want
        or (want.endswith(b"/") and have.startswith(want))
        or (have.endswith(b"/") and want.startswith(have))
    )


def wants(rule: dict[str, Any], said: dict[str, Any], senders: list[bytes]) -> bool:
    """The specification's words, key by key."""
    space = rule["path_namespace"]
    return (
        rule["type"] in (0, 4)
        and rule["sender"] in (None, *senders)
        and all(rule[key] in (None, said[key]) for key in ("interface", "member", "path"))
        and (space in (None, b"/", said["path"]) or said["path"].startswith(space + b"/"))
        and all(
            number < len(said["args"]) and arg_fits(kind, text, said["args"][number])
            for number, (kind, text) in rule["args"].items()
        )
    )


def as_classic(said: dict[str, Any], serial: int) -> Message:
    fields = {key: said[key] for key in ("path", "interface", "member")}
    args = [arg.decode() for arg in said["args"]]
    return corebus.signal(serial, signature="s" * len(args), values=args, **fields)


def as_kdbus(said: dict[str, Any], serial: int) -> Dbus2Message:
    fields = {key: said[key] for key in ("path", "interface", "member")}
    args = [arg.decode() for arg in said["args"]]
    return dbus2(wire.SIGNAL, serial, signature=b"s" * len(args), values=args, **fields)


@given(st.lists(keys, min_size=1, max_size=4), st.lists(signals, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_both_worlds_hear_the_same(rules: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    shared = Shared()
    classic, client = shared.classic(), shared.kdbus()
    assert (classic.unique_name, client.id) == (b":1.2", 3)
    shared.core.request_name(classic, NAMES[0], 0)
    client.acquire(NAMES[1])
    ear, other_ear = shared.classic(), shared.kdbus()
    asked = [Rule(**rule) for rule in rules]
    for rule in rules:
        shared.core.add_match(ear, Rule(**rule))
    for number, rule in enumerate(asked):
        listen(other_ear, rule, number)
    # For the second look, which sd-bus takes in the client.
    index = MatchIndex(Atoms())
    index.first = 0
    for rule in asked:
        index.add(rule, classic)
    received(ear)
    for serial, said in enumerate(sent, 1):
        for senders in ([b":1.2", NAMES[0]], [b":1.3", NAMES[1]]):
            if senders[0] == b":1.2":
                tell(shared, classic, as_classic(said, serial))
            else:
                assert send(client, as_kdbus(said, serial)) == 0
            expected = any(wants(rule, said, senders) for rule in rules)
            heard = received(ear)
            assert [msg.sender for msg in heard] == ([senders[0]] if expected else [])
            assert accepted(other_ear, shared, asked) == ([senders[0]] if expected else [])


def accepted(client: Any, shared: Shared, asked: list[Rule]) -> list[bytes | None]:
    """Senders of what is in a kdbus client's queue and is wanted, as sd-bus looks at it again."""
    out = []
    while not isinstance(got := client.try_recv(), int):
        said = transcode.parse(got.payload)
        msg = Message()
        assert msg.load(transcode.to_classic(said))
        sender = shared.core.connections[got.src]
        if any(rule.matches(msg, sender, None) for rule in asked):
            out.append(sender.unique_name)
    return out


def test_who_did_not_ask_hears_nothing(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    ear, other_ear = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.signal())
    signal(client)
    assert received(ear) == []
    assert notices(other_ear) == []


def test_own_signals_come_back_as_on_any_bus(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    shared.core.add_match(classic, Rule(type=4))
    listen(client, Rule(type=4))
    tell(shared, classic, corebus.signal(2))
    signal(client, 3)
    assert [msg.serial for msg in received(classic)] == [2, 3]
    assert [hear(client).cookie for _ in range(2)] == [2, 3]


def test_signal_to_one(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.signal(destination=unique(client)))
    assert notices(client) == []  # it did not ask for what is sent to it
    listen_to_own(client)
    client.acquire(NAMES[0])
    notices(client)
    tell(shared, classic, corebus.signal(destination=unique(client)))
    tell(shared, classic, corebus.signal(destination=NAMES[0]))
    assert [hear(client).destination for _ in range(2)] == [unique(client), NAMES[0]]
    assert signal(client, destination=unique(classic)) == 0
    assert [msg.destination for msg in received(classic)] == [unique(classic)]


def test_order_of_messages_and_changes(shared: Shared) -> None:
    """A receiver in kdbus sees what a classic peer did in the order in which it did it."""
    classic, client = shared.classic(), shared.kdbus()
    client.listen()
    listen(client, Rule(type=4), 2)
    for turn in range(3):
        tell(shared, classic, corebus.call(unique(client), 10 + turn, 1))
        shared.core.request_name(classic, NAMES[0], 0)
        tell(shared, classic, corebus.signal())
        shared.core.release_name(classic, NAMES[0])
    expected = [
        ("message", classic.id, b"M"),
        (c.ITEM_NAME_ADD, NAMES[0], 0, classic.id),
        ("message", classic.id, b"S"),
        (c.ITEM_NAME_REMOVE, NAMES[0], classic.id, 0),
    ]
    assert notices(client) == expected * 3


def test_descriptors_are_not_broadcast_into_kdbus(shared: Shared) -> None:
    """kdbus's broadcasts have none; classic listeners get theirs."""
    classic, client, ear = shared.classic(), shared.kdbus(), shared.classic()
    listen(client, Rule(type=4))
    shared.core.add_match(ear, Rule(type=4))
    msg = corebus.signal(signature="h", values=[0], n_fds=1)
    msg.fds = FdSet([unnamed()])
    tell(shared, classic, msg)
    assert notices(client) == []
    assert len(received(ear)) == 1


def test_unreadable_broadcast_costs_nobody_anything(shared: Shared) -> None:
    """A payload that is not sd-bus's is for kdbus's clients alone."""
    client, other, ear = shared.kdbus(), shared.kdbus(), shared.classic()
    other.listen()
    shared.core.add_match(ear, Rule())
    said = as_kdbus({"path": b"/a", "interface": INTERFACES[0], "member": b"S", "args": []}, 4)
    assert send(client, said, pieces=(b"no message",)) == 0
    assert received(ear) == []
    assert other.recv().payload == b"no message"


def test_listener_without_room_loses_a_broadcast(shared: Shared) -> None:
    classic = shared.classic()
    client = shared.open().hello(pool=4096 * 4)
    listen(client, Rule(type=4))
    for _ in range(20):
        tell(shared, classic, corebus.signal(signature="s", values=["x" * 900]))
    assert received(classic) == []
    heard = 0
    while not isinstance(client.try_recv(), int):
        heard += 1
    assert 0 < heard < 20
    assert not shared.front.take("refused")


# Monitors


def monitor(shared: Shared) -> Any:
    conn = shared.classic()
    shared.core.become_monitor(conn, [Rule()])
    received(conn)
    return conn


def test_classic_monitor_sees_both_ways(shared: Shared) -> None:
    classic, client, second = shared.classic(), shared.kdbus(), shared.kdbus()
    watch = monitor(shared)
    call(client, unique(classic), 3)
    tell(shared, classic, corebus.call(unique(client), 4, 1))
    signal(client, 5)
    call(client, unique(second), 6)
    second.recv()
    send(second, dbus2(wire.RETURN, 7, reply_cookie=6, destination=unique(client)))
    seen = [(msg.sender, msg.destination, msg.serial) for msg in received(watch)]
    assert seen == [
        (unique(client), unique(classic), 3),
        (unique(classic), unique(client), 4),
        (unique(client), None, 5),
        (unique(client), unique(second), 6),
        (unique(second), unique(client), 7),
    ]
    assert second.send(kdbus_message(client.id)) == 0
    assert received(watch) == []  # not in sd-bus's form


def kdbus_message(to: int) -> bytes:
    return message(to)


def test_kdbus_monitor_sees_both_ways_and_the_classic_ones(shared: Shared) -> None:
    classic, other, client = shared.classic(), shared.classic(), shared.kdbus()
    watch = shared.kdbus(c.HELLO_MONITOR)
    tell(shared, classic, corebus.call(unique(other), 2, 1))
    # Calls to the driver, and its answers, are not on kdbus's side of the bus.
    tell(shared, classic, corebus.call(b"org.freedesktop.DBus", 7, 1))
    tell(shared, classic, corebus.call(None, 8, 1))
    tell(shared, classic, corebus.call(b"com.example.Nobody", 9, 1))
    # But what waits for a service is.
    shared.front.starts.add(b"com.example.Later")
    tell(shared, classic, corebus.call(b"com.example.Later", 10, 1))
    holder = shared.activator(b"com.example.Held")
    tell(shared, classic, corebus.call(b"com.example.Held", 11, 0))
    tell(shared, classic, corebus.call(unique(client), 3, 1))
    call(client, unique(classic), 4)
    tell(shared, classic, corebus.signal(5))
    signal(client, 6)
    got = []
    while not isinstance(one := watch.try_recv(), int):
        if one.src:
            got.append((one.src, one.dst, one.cookie))
    everybody = c.DST_BROADCAST
    assert got == [
        (classic.id, other.id, 2),
        (classic.id, c.DST_NAME, 10),
        (classic.id, holder.id, 11),
        (classic.id, client.id, 3),
        (client.id, classic.id, 4),
        (classic.id, everybody, 5),
        (client.id, everybody, 6),
    ]
    watch.handle.close()
    assert shared.core.monitors == []
    assert len(shared.core.monitor_index) == 0


# Bodies


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[Any]]:
    signature = draw(signatures.filter(lambda text: "h" not in text))
    return signature, [draw(value_of(part)) for part in wire.split_signature(signature)]


@given(bodies(), st.booleans())
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
def test_round_trip_through_kdbus(body: tuple[str, list[Any]], big: bool) -> None:
    """Out of the classic world and back, through a client that sends on what it got."""
    signature, values = body
    if "h" in str(values):
        return  # a handle in a variant needs a descriptor
    shared = Shared()
    classic, client, last = shared.classic(), shared.kdbus(), shared.classic()
    little = wire.marshal(signature, values)
    msg = Message()
    assert msg.load(raw_call(unique(client), signature, values, big))
    tell(shared, classic, msg)
    said = hear(client)
    said.destination, said.sender = unique(last), None
    assert send(client, said) == 0
    (back,) = received(last)
    assert back.body() == little
    assert back.signature == signature.encode()
    assert (back.path, back.interface, back.member) == (b"/a", b"com.example.I", b"M")
    assert (back.serial, back.flags, back.sender) == (7, 4, unique(client))


def raw_call(to: bytes, signature: str, values: list[Any], big: bool) -> bytes:
    said = {
        "type": 1, "flags": 4, "serial": 7, "path": "/a", "interface": "com.example.I",
        "member": "M", "destination": to.decode(), "error_name": None, "reply_serial": 0,
        "signature": signature, "n_fds": 0, "values": values,
    }  # fmt: skip
    return classic_messages.raw(said, big)
