"""A connection's match rules: which one RemoveMatch takes, and that nothing of a rule is left."""

from __future__ import annotations

import corebus
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.errors import Refused
from jitney.broker.match import Rule
from jitney.broker.mem import Buffer
from jitney.compat import wire

# Few values, so that many rules say the same.
FIELDS = st.fixed_dictionaries(
    {
        "type": st.sampled_from([0, 4]),
        "sender": st.sampled_from([None, b":1.1", b"a.b"]),
        "member": st.sampled_from([None, b"M"]),
        "args": st.sampled_from([None, {0: ("s", b"x")}, {0: ("p", b"x")}, {1: ("s", b"x")}]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), FIELDS), max_size=40))
def test_the_latest_equal_rule_goes_and_the_others_keep_their_order(steps) -> None:
    bus = corebus.make_bus()
    conn, _ = corebus.join(bus), corebus.join(bus)
    model: list[tuple[dict[str, object], Rule]] = []
    for add, fields in steps:
        rule = Rule(**fields)
        if add:
            bus.add_match(conn, rule)
            model.append((fields, rule))
            continue
        places = [i for i, (have, _) in enumerate(model) if have == fields]
        try:
            bus.remove_match(conn, rule)
        except Refused:
            assert not places
        else:
            del model[places[-1]]
        assert conn.rules == [rule for _, rule in model]
        assert conn.n_rules == conn.user.matches == len(model) == len(bus.match_index)


def test_equal_rules_of_many_connections_come_and_go_in_any_order() -> None:
    bus = corebus.make_bus()
    conns = [corebus.join(bus) for _ in range(30)]
    for conn in conns:
        bus.add_match(conn, Rule(type=4, member=b"S"))
    left = list(conns)
    for i in (0, 28, 13, 13, 0, 24):
        bus.remove_match(left.pop(i), Rule(type=4, member=b"S"))
        # In the order in which they asked.
        assert bus.match_index.collect(corebus.signal(), None, None) == left
    for conn in list(left):
        bus.disconnect(conn)
        left.remove(conn)
        assert bus.match_index.collect(corebus.signal(), None, None) == left


def test_who_is_named_by_rules_forgets_those_that_are_gone() -> None:
    bus = corebus.make_bus()
    service = corebus.join(bus)
    for remove in (True, False):
        client = corebus.join(bus)
        bus.add_match(client, Rule(sender=service.unique_name))
        bus.add_match(client, Rule(destination=service.unique_name, eavesdrop=True))
        assert len(service.referers) == 2
        if remove:
            bus.remove_match(client, Rule(sender=service.unique_name))
            assert len(service.referers) == 1
        bus.disconnect(client)
        assert not service.referers


def test_equal_rules_go_with_whom_they_name() -> None:
    bus = corebus.make_bus()
    conn, service = corebus.join(bus), corebus.join(bus)
    kept = Rule(type=4)
    bus.add_match(conn, kept)
    for _ in range(200):
        bus.add_match(conn, Rule(type=4, sender=service.unique_name))
    bus.disconnect(service)
    assert conn.rules == [kept]
    assert (conn.user.matches, len(bus.match_index)) == (1, 1)


def test_an_unparsed_message_of_the_driver_is_queued_as_a_parsed_one() -> None:
    bus = corebus.make_bus()
    conn = corebus.join(bus)
    for size in (0, 1, 300, 20000):
        for signature in ("", "s"):
            values = ("x" * size,) if signature else ()
            data = wire.message(
                wire.RETURN, 7, destination=conn.unique_name, reply_serial=9,
                signature=signature, body=wire.marshal(signature, values),
            )  # fmt: skip
            buffer = Buffer()
            buffer.add(data)
            bus.post(conn, buffer)
            bus.emit(conn, data)
            assert [size for size, _, _ in conn.queue.charges_list()] == [len(data)] * 2
            assert conn.queue.peek() == data * 2
            conn.queue.sent(2 * len(data))
