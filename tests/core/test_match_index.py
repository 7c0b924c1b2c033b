"""The match index finds exactly those whom a naive look at every rule finds."""

from __future__ import annotations

import corebus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.match import Rule
from jitney.compat import wire

NAMES = [b"com.example.A", b"com.example.B", b"com.example"]
INTERFACES = [b"com.example.I", b"com.example.J"]
MEMBERS = [b"S", b"T"]
PATHS = [b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/a/bc"]
STRINGS = [
    b"",
    b"com",
    b"com.example",
    b"com.example.A",
    b"com.examplex",
    b"/a",
    b"/a/",
    b"/",
    b"x",
]
ARGS = st.dictionaries(
    st.integers(0, 3), st.tuples(st.sampled_from("sp"), st.sampled_from(STRINGS)), max_size=2
)


def maybe(values: list[bytes]) -> st.SearchStrategy[bytes | None]:
    return st.none() | st.sampled_from(values)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, object]:
    args = dict(draw(ARGS))
    if draw(st.booleans()):
        args[0] = ("n", draw(st.sampled_from(STRINGS[1:5])))
    exact = draw(maybe(PATHS))
    return {
        "type": draw(st.sampled_from([0, 0, 4, 1])),
        "sender": draw(maybe([*NAMES, b":1.0", b":1.1", b":1.9", b"org.freedesktop.DBus"])),
        "interface": draw(maybe(INTERFACES)),
        "member": draw(maybe(MEMBERS)),
        "path": exact,
        "path_namespace": None if exact is not None else draw(maybe(PATHS)),
        "destination": draw(st.none() | st.sampled_from([*NAMES, b":1.1"])),
        "args": args,
        "eavesdrop": draw(st.booleans()),
    }


MESSAGES = st.fixed_dictionaries(
    {
        "path": st.sampled_from(PATHS),
        "interface": st.sampled_from([*INTERFACES, b"com.example.Unheard"]),
        "member": st.sampled_from([*MEMBERS, b"Unheard"]),
        "destination": st.none() | st.sampled_from([b":1.1", b"com.example.A"]),
        "signature": st.sampled_from(["", "s", "so", "ussu", "sss", "o"]),
    }
)


def values(signature: str, texts: list[bytes]) -> list[object]:
    out: list[object] = []
    for i, code in enumerate(signature):
        text = texts[i % len(texts)]
        if code == "u":
            out.append(7)
        elif code == "o":
            out.append(text if text in (b"/", b"/a") else b"/a")
        else:
            out.append(text)
    return out


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), rules()), max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(NAMES)), max_size=4),
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 3),
            MESSAGES,
            st.lists(st.sampled_from(STRINGS), min_size=4, max_size=4),
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
@pytest.mark.weakness("dbus-broker#367")
def test_index_against_naive_oracle(asked, owned, sent, data) -> None:
    bus = corebus.make_bus()
    conns = [corebus.join(bus) for _ in range(4)]
    for who, name in owned:
        bus.request_name(conns[who], name, 0)
    made = []
    for who, fields in asked:
        rule = Rule(**fields)
        bus.add_match(conns[who], rule)
        made.append((conns[who], rule))
    # Some rules go again: the index must forget them, and nothing else.
    if made:
        for i in sorted(data.draw(st.sets(st.integers(0, len(made) - 1))), reverse=True):
            conn, rule = made.pop(i)
            bus.remove_match(conn, rule)
            # Equal rules are one and the same to RemoveMatch, which takes the latest.
            if rule.owner is not None:
                for k in range(len(made) - 1, -1, -1):
                    if made[k][0] is conn and made[k][1].owner is None:
                        made[k] = (conn, rule)
                        break
    for who, fields, texts in sent:
        signature = fields["signature"]
        msg = corebus.message(wire.SIGNAL, values=values(signature, texts), **fields)
        sender = None if who is None else conns[who]
        dest = None if fields["destination"] is None else bus.lookup(fields["destination"])
        found = [conn.id for conn in bus.match_index.collect(msg, sender, dest)]
        naive = {c.id for c, rule in made if c is not dest and rule.matches(msg, sender, dest)}
        assert sorted(found) == sorted(naive)
    assert len(bus.match_index) == len(made)


def test_rules_of_a_connection_that_left_are_gone() -> None:
    bus = corebus.make_bus()
    a, b = corebus.join(bus), corebus.join(bus)
    bus.add_match(a, Rule(type=4, sender=b.unique_name))
    bus.add_match(b, Rule(type=4))
    bus.disconnect(b)
    assert len(bus.match_index) == 0
    assert a.rules == []
    assert a.user.matches == 0


def test_the_table_of_strings_empties_with_the_rules() -> None:
    bus = corebus.make_bus()
    conn = corebus.join(bus)
    start = len(bus.atoms)
    made = [
        Rule(type=4, interface=b"a.b%d" % i, path=b"/p%d" % i, args={0: ("s", b"v%d" % i)})
        for i in range(500)
    ]
    for rule in made:
        bus.add_match(conn, rule)
    assert len(bus.atoms) == start + 1500
    for rule in made:
        bus.remove_match(conn, rule)
    assert len(bus.atoms) == start


def test_messages_do_not_fill_the_table_of_strings() -> None:
    bus = corebus.make_bus()
    conn = corebus.join(bus)
    bus.add_match(conn, Rule(type=4, interface=b"com.example.I"))
    before = len(bus.atoms)
    for i in range(200):
        bus.dispatch(conn, corebus.signal(interface=b"x.y%d" % i, member=b"m%d" % i))
    assert len(bus.atoms) == before
