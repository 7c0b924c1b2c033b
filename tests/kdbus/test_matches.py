"""Match rules as kdbus matches: what a rule wants always comes through.

Invariant: the core's own matcher is the judge, for messages of peers and for what the bus says.
"""

from __future__ import annotations

from struct import pack
from typing import Any

import corebus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.kdbus.constants import (
    ITEM_BLOOM_MASK,
    ITEM_DST_ID,
    ITEM_ID,
    ITEM_ID_ADD,
    ITEM_ID_REMOVE,
    ITEM_NAME,
    ITEM_NAME_ADD,
    ITEM_NAME_CHANGE,
    ITEM_NAME_REMOVE,
    NAME_ACTIVATOR,
    NAME_IN_QUEUE,
)
from jitney.broker.match import Rule
from jitney.compat import matchrule, wire
from jitney.kdbus import bloom, matches, translate
from jitney.kdbus.gvariant import Malformed
from jitney.kdbus.matches import always, lets_message, lets_notification, of_rule, rule_of
from jitney.kdbus.transcode import from_classic, id_of
from jitney.kdbus.translate import (
    Item,
    NameChange,
    item_of,
    owner_change,
)

DRIVER = b"org.freedesktop.DBus"
DRIVER_PATH = b"/org/freedesktop/DBus"
NAMES = [b"com.example.A", b"com.example.B", b"com.example"]
OWNERS = [b"", b":1.1", b":1.2", b":1.3"]
INTERFACES = [b"com.example.I", b"com.example.J", DRIVER]
MEMBERS = [b"S", b"T", b"NameOwnerChanged"]
PATHS = [b"/", b"/a", b"/a/b", b"/ab", DRIVER_PATH, b"/org"]
STRINGS = [b"", b"com", b"com.example", b"com.example.A", b"/a", b"/a/", b"/", b":1.1", b":1.2"]


def maybe(values: list[bytes]) -> st.SearchStrategy[bytes | None]:
    return st.none() | st.sampled_from(values)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    args = draw(
        st.dictionaries(
            st.integers(0, 3),
            st.tuples(st.sampled_from("ssp"), st.sampled_from(STRINGS)),
            max_size=2,
        )
    )
    if draw(st.integers(0, 3)) == 0:
        args[0] = ("n", draw(st.sampled_from([b"com", b"com.example", b"com.example.A", b":1"])))
    exact = draw(maybe(PATHS))
    return Rule(
        type=draw(st.sampled_from([0, 4, 4, 1])),
        sender=draw(maybe([*NAMES, b":1.1", b":1.2", b":2.1", DRIVER])),
        interface=draw(maybe(INTERFACES)),
        member=draw(maybe(MEMBERS)),
        path=exact,
        path_namespace=None if exact is not None else draw(maybe(PATHS)),
        destination=draw(st.none() | st.none() | st.sampled_from([*NAMES, b":1.1"])),
        args=args,
        eavesdrop=draw(st.booleans()),
    )


@st.composite
def signals(draw: st.DrawFn) -> dict[str, Any]:
    signature = draw(st.sampled_from(["", "s", "so", "uss", "sss", "ass", "oag"]))
    values: list[Any] = []
    for kind in wire.split_signature(signature):
        if kind == "u":
            values.append(7)
        elif kind == "o":
            values.append(draw(st.sampled_from(PATHS)))
        elif kind == "ag":
            values.append(["s"])
        elif kind == "as":
            values.append(draw(st.lists(st.sampled_from(STRINGS), max_size=2)))
        else:
            values.append(draw(st.sampled_from(STRINGS)))
    return {
        "path": draw(st.sampled_from(PATHS)),
        "interface": draw(st.sampled_from(INTERFACES)),
        "member": draw(st.sampled_from(MEMBERS)),
        "signature": signature,
        "values": values,
    }


@given(st.lists(rules(), min_size=1, max_size=6), st.lists(signals(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_no_signal_of_a_peer_is_missed(asked: list[Rule], sent: list[dict[str, Any]]) -> None:
    bus = corebus.make_bus()
    # On kdbus nobody is :1.0, as that id is the bus.
    corebus.join(bus)
    peers = [corebus.join(bus) for _ in range(2)]
    bus.request_name(peers[0], b"com.example.A", 0)
    bus.request_name(peers[1], b"com.example", 0)
    listener = corebus.join(bus)
    for rule in asked:
        bus.add_match(listener, rule)
    for fields in sent:
        msg = corebus.message(wire.SIGNAL, **fields)
        bits = bloom.filter_of(from_classic(msg))
        for peer in peers:
            for rule in asked:
                if rule.matches(msg, peer, None):
                    number = id_of(peer.unique_name)
                    assert number is not None
                    assert any(
                        lets_message(match, number, peer.owned, bits) for match in of_rule(rule)
                    ), matchrule.format(rule)


@st.composite
def changes(draw: st.DrawFn) -> Item:
    """A notification as kdbus sends it."""
    if draw(st.booleans()):
        name = draw(st.sampled_from([b":1.1", b":1.2", b":1.3"]))
        return item_of(name, *draw(st.sampled_from([(name, b""), (b"", name)])))
    ids = st.sampled_from([1, 2, 3])
    flags = st.sampled_from([0, 0, NAME_ACTIVATOR, NAME_IN_QUEUE])
    kind = draw(st.sampled_from([ITEM_NAME_ADD, ITEM_NAME_REMOVE, ITEM_NAME_CHANGE]))
    old = (0, 0) if kind == ITEM_NAME_ADD else (draw(ids), draw(flags))
    new = (0, 0) if kind == ITEM_NAME_REMOVE else (draw(ids), draw(flags))
    change = NameChange(draw(st.sampled_from(NAMES)), old[0], new[0], old[1], new[1])
    return Item(kind, change.data())


def of_driver(args: tuple[bytes, bytes, bytes]) -> Any:
    return corebus.message(
        wire.SIGNAL,
        path=DRIVER_PATH,
        interface=DRIVER,
        member=b"NameOwnerChanged",
        signature="sss",
        values=list(args),
    )


@st.composite
def rules_of_names(draw: st.DrawFn) -> Rule:
    args = draw(
        st.dictionaries(
            st.integers(0, 2),
            st.tuples(st.sampled_from("sssp"), st.sampled_from([*NAMES, *OWNERS])),
            max_size=3,
        )
    )
    if draw(st.integers(0, 3)) == 0:
        args[0] = ("n", draw(st.sampled_from([b"com", b"com.example", b":1", b":1.1"])))
    return Rule(type=4, sender=draw(maybe([DRIVER])), member=draw(maybe([MEMBERS[2]])), args=args)


@given(rules() | rules_of_names(), changes())
@settings(deadline=None, max_examples=400)
def test_no_change_of_a_name_is_missed(rule: Rule, told: Item) -> None:
    args = owner_change(told)
    if args is not None and rule.matches(of_driver(args), None, None):
        assert any(lets_notification(match, told) for match in of_rule(rule)), matchrule.format(
            rule
        )


@given(rules(), changes())
@settings(deadline=None, max_examples=300)
def test_what_is_about_peers_lets_nothing_of_the_bus_through(rule: Rule, told: Item) -> None:
    for match in of_rule(rule):
        assert match
        kinds = {item.type for item in match}
        if lets_notification(match, told):
            assert not kinds & {ITEM_ID, ITEM_NAME, ITEM_BLOOM_MASK, ITEM_DST_ID}


def of_text(text: str) -> list[matches.Match]:
    return of_rule(matchrule.parse(text.encode()))


def test_what_sd_bus_would_install() -> None:
    mask = bloom.mask_of(Rule(type=4, interface=b"a.b"))
    assert mask is not None
    assert of_text("type='signal',sender=':1.5',interface='a.b'") == [
        [Item(ITEM_ID, pack("=Q", 5)), Item(ITEM_BLOOM_MASK, mask)]
    ]
    assert of_text("type='signal',sender='x.y',interface='a.b'") == [
        [Item(ITEM_NAME, b"x.y\0"), Item(ITEM_BLOOM_MASK, mask)]
    ]
    any_id = matches.ANY
    name = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='%s'"
    assert of_text(name % "x.y") == [
        [Item(kind, pack("=4Q", any_id, 0, any_id, 0) + b"x.y\0")]
        for kind in (ITEM_NAME_CHANGE, ITEM_NAME_ADD, ITEM_NAME_REMOVE)
    ]
    assert of_text(name % ":1.5") == [
        [Item(kind, pack("=QQ", 5, 0))] for kind in (ITEM_ID_ADD, ITEM_ID_REMOVE)
    ]
    assert of_text(name % "x.y" + ",arg2=''") == [
        [Item(kind, pack("=4Q", any_id, 0, any_id, 0) + b"x.y\0")]
        for kind in (ITEM_NAME_CHANGE, ITEM_NAME_REMOVE)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "type='method_call'",
        "type='error',interface='a.b'",
        "destination='a.b',eavesdrop='true'",
        "destination=':1.5'",
        "sender=':2.5'",
        "sender='org.freedesktop.DBus',interface='a.b'",
        "sender='org.freedesktop.DBus',member='NameOwnerChanged',arg1='a.b'",
        "sender='org.freedesktop.DBus',member='NameOwnerChanged',arg1='',arg2=''",
        "sender='org.freedesktop.DBus',arg0=':1.5',arg1=':1.6'",
        "sender='org.freedesktop.DBus',arg3=''",
        "sender='org.freedesktop.DBus',arg0='nodot'",
        "sender='org.freedesktop.DBus',arg0=''",
        "sender='org.freedesktop.DBus',path='/a'",
        "sender='org.freedesktop.DBus',path_namespace='/org/freedesktop/DB'",
    ],
)
def test_what_cannot_come_needs_no_match(text: str) -> None:
    assert of_text(text) == []


def test_what_a_classic_connection_always_hears() -> None:
    own = always(7)
    bits = bytes(64)
    assert any(lets_message(match, 3, [], bits, dst_id=7) for match in own)
    assert not any(lets_message(match, 3, [], bits, dst_id=8) for match in own)
    assert not any(lets_message(match, 3, [], bits) for match in own)
    for old, new in ((b"", b":1.7"), (b":1.7", b""), (b":1.7", b":1.8"), (b":1.8", b":1.7")):
        assert any(lets_notification(match, item_of(b"a.b", old, new)) for match in own)
    assert not any(lets_notification(m, item_of(b"a.b", b":1.8", b":1.9")) for m in own)


# ---- back


@given(rules() | rules_of_names(), changes())
@settings(deadline=None, max_examples=300)
def test_a_rule_in_words_wants_all_that_the_match_lets_through(rule: Rule, told: Item) -> None:
    args = owner_change(told)
    for match in of_rule(rule):
        words = rule_of(match)
        assert words is not None
        assert matchrule.parse(matchrule.format(words).encode()).same_as(words)
        if args is not None and lets_notification(match, told):
            assert words.matches(of_driver(args), None, None)


def test_matches_that_nothing_can_pass() -> None:
    one, two = (Item(ITEM_ID, pack("=Q", number)) for number in (1, 2))
    added = Item(ITEM_ID_ADD, pack("=QQ", 1, 0))
    assert rule_of([one, two]) is None
    assert rule_of([one, added]) is None
    assert rule_of([added, Item(ITEM_ID_ADD, pack("=QQ", 2, 0))]) is None
    assert rule_of([added, Item(ITEM_ID_REMOVE, pack("=QQ", 1, 0))]) is None
    words = rule_of([added])
    assert words is not None
    assert matchrule.format(words) == (
        "type='signal',interface='org.freedesktop.DBus',member='NameOwnerChanged',"
        "path='/org/freedesktop/DBus',sender='org.freedesktop.DBus',"
        "arg0=':1.1',arg1='',arg2=':1.1'"
    )
    for broken in (Item(ITEM_ID, b"x"), Item(ITEM_ID_ADD, b""), Item(ITEM_NAME_ADD, b"abc")):
        with pytest.raises(Malformed):
            rule_of([broken])


def test_everything_is_asked_of_peers_and_of_the_bus_apart() -> None:
    every = of_rule(Rule())
    assert [Item(ITEM_ID, pack("=Q", matches.ANY))] in every
    assert lets_message(every[0], 5, [], bytes(64))
    for told in (item_of(b":1.1", b"", b":1.1"), item_of(b"a.b", b":1.1", b":1.2")):
        assert sum(lets_notification(match, told) for match in every) == 1
    assert translate.DRIVER_PATH == DRIVER_PATH
