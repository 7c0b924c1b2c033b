"""Policy: decisions, held against an evaluator written from dbus-daemon's manual alone.

The evaluator reads the attributes as the manual names them (`send_destination="*"` and so on),
not the core's rules, so what is tested is the whole way from an attribute to a decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.policy import NO_UID, ClientPolicy, PolicySet
from jitney.broker.policy_rules import UNKNOWN, below
from jitney.compat.config.allowdeny import BadRule, make_rule
from jitney.compat.config.model import Identity
from jitney.compat.config.users import UserDatabase

TYPES = {"method_call": 1, "method_return": 2, "error": 3, "signal": 4}
DRIVER = "org.freedesktop.DBus"


@dataclass
class FakeMessage:
    type: int = 1
    path: bytes | None = b"/p"
    interface: bytes | None = b"i.A"
    member: bytes | None = b"M"
    error_name: bytes | None = None
    destination: bytes | None = b"n.a"
    sender: bytes | None = b":1.0"
    reply_serial: int = 0
    n_fds: int = 0


@dataclass(eq=False)
class FakeConnection:
    """`names`: what it owns or waits for."""

    unique_name: bytes = b":1.7"
    names: dict[bytes, Any] = field(default_factory=dict)


class People(UserDatabase):
    """u1 and g1 have id 1, and so on."""

    def user(self, text: str) -> Identity:
        return Identity(name=text, id=int(text[1:]), known=True)

    group = user


# One rule as it stands in a file: element, attributes.
Written = tuple[str, dict[str, str]]


def entry(written: Written, line: int = 0, scope: str = "default", id: int = -1) -> Any:
    element, attributes = written
    rule = make_rule(element, attributes, "f", line, People())
    return scope, id, b"", rule.spec()


def policies(*rules: Written) -> PolicySet:
    return PolicySet(entry(rule, line) for line, rule in enumerate(rules, 1))


def client(*rules: Written) -> ClientPolicy:
    return policies(*rules).client(1, [], False)


def allow(**attributes: str) -> Written:
    return "allow", attributes


def deny(**attributes: str) -> Written:
    return "deny", attributes


# The manual


def is_send(attributes: dict[str, str]) -> bool:
    return any(name.startswith("send_") for name in attributes)


def is_receive(attributes: dict[str, str]) -> bool:
    """'... with one or more of the receive_* family, or with the eavesdrop attribute and no
    others.'"""
    if is_send(attributes):
        return False
    return "eavesdrop" in attributes or any(name.startswith("receive_") for name in attributes)


def names_of(conn: FakeConnection) -> set[str]:
    return {name.decode() for name in (conn.unique_name, *conn.names)}


def in_namespace(name: str, prefix: str) -> bool:
    return (name + ".").startswith(prefix + ".")


def manual_matches(
    written: Written,
    side: str,
    msg: FakeMessage,
    peer: FakeConnection | None,
    eavesdropping: bool,
    requested: bool,
) -> bool:
    """Whether the rule matches, `peer` being the receiver (or sender) if that is a connection."""
    element, attributes = written

    def get(name: str) -> str | None:
        value = attributes.get(f"{side}_{name}")
        return None if value == "*" else value

    wanted_type = get("type")
    if wanted_type and TYPES[wanted_type] != msg.type:
        return False
    for name, have in (
        ("path", msg.path), ("member", msg.member), ("error", msg.error_name),
    ):  # fmt: skip
        # Observed, not documented: a field that is absent matches.
        if get(name) and have is not None and have.decode() != get(name):
            return False
    if get("interface"):
        # "This will cause no-interface messages to be blocked" - by deny rules.
        if msg.interface is None:
            if element == "allow":
                return False
        elif msg.interface.decode() != get("interface"):
            return False
    if not int(attributes.get("min_fds", 0)) <= msg.n_fds <= int(attributes.get("max_fds", 10**9)):
        return False

    eavesdrop = attributes.get("eavesdrop") == "true"
    if side == "receive":
        if element == "allow" and eavesdropping and not eavesdrop:
            return False
        if element == "deny" and eavesdrop and not eavesdropping:
            return False
    if msg.reply_serial:
        default = "true" if element == "allow" else "false"
        flag = attributes.get(f"{side}_requested_reply", default) == "true"
        if element == "allow" and flag and not requested and not eavesdrop:
            return False
        if element == "deny" and not flag and requested:
            return False

    broadcast = attributes.get("send_broadcast")
    if broadcast and (broadcast == "true") != (msg.type == 4 and msg.destination is None):
        return False
    text = msg.destination if side == "send" else msg.sender
    held = names_of(peer) if peer else {text.decode()} if text else set()
    wanted = get("destination") if side == "send" else get("sender")
    if wanted and wanted not in held:
        return False
    prefix = attributes.get("send_destination_prefix")
    return prefix is None or any(in_namespace(name, prefix) for name in held)


def manual_verdict(
    rules: list[Written],
    side: str,
    msg: FakeMessage,
    peer: FakeConnection | None,
    eavesdropping: bool,
    requested: bool,
) -> tuple[bool, int]:
    """'The last rule that matches the message determines'; and how many match."""
    mine = [rule for rule in rules if (is_send if side == "send" else is_receive)(rule[1])]
    narrow = ("path", "interface", "member", "error", "type", "destination", "sender")
    for i in range(len(mine) - 1, -1, -1):
        attributes = mine[i][1]
        # Observed, not documented: nothing counts that stands before a rule without any of these.
        if "send_destination_prefix" not in attributes and all(
            attributes.get(f"{side}_{name}", "*") == "*" for name in narrow
        ):
            mine = mine[i:]
            break
    verdict, matches = False, 0
    for rule in mine:
        if manual_matches(rule, side, msg, peer, eavesdropping, requested):
            verdict = rule[0] == "allow"
            matches += 1
    return verdict, matches


# Random rules and messages, of few words, so that they meet

flag = st.sampled_from(["true", "false"])
well_known = ["n", "n.a", "n.a.b", "n.ab", "m"]
a_name = st.sampled_from(["n.a", *well_known, ":1.7", ":1", DRIVER])
attribute_values = {
    "path": st.sampled_from(["/p", "/p", "/q", "*"]),
    "interface": st.sampled_from(["i.A", "i.A", "i.B", "*"]),
    "member": st.sampled_from(["M", "M", "N", "*"]),
    "error": st.sampled_from(["e.E", "e.E", "e.F", "*"]),
    "type": st.sampled_from([*TYPES, "*"]),
    "requested_reply": flag,
}
modifiers = {
    "eavesdrop": flag,
    "min_fds": st.sampled_from(["0", "1"]),
    "max_fds": st.sampled_from(["0", "2"]),
    "log": flag,
}
send_values = {f"send_{name}": values for name, values in attribute_values.items()} | {
    "send_destination": st.one_of(a_name, st.just("*")),
    "send_destination_prefix": a_name,
    "send_broadcast": flag,
}
receive_values = {f"receive_{name}": values for name, values in attribute_values.items()} | {
    "receive_sender": st.one_of(a_name, st.just("*")),
}


def is_good(written: Written) -> bool:
    try:
        entry(written)
    except BadRule:
        return False
    return True


@st.composite
def written_rule(draw: st.DrawFn, values: dict[str, st.SearchStrategy[str]]) -> Written:
    element = draw(st.sampled_from(["allow", "deny"]))
    # Few attributes, so that a good part of the rules is good and matches something.
    chosen = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True))
    return element, {name: draw(values[name]) for name in chosen}


send_rule = written_rule(send_values | modifiers).filter(is_good)
receive_rule = written_rule(receive_values | modifiers).filter(is_good)


def mostly(rule: st.SearchStrategy[Written], other: st.SearchStrategy[Written]) -> Any:
    return st.lists(st.one_of(rule, rule, rule, other), min_size=1, max_size=6)


def maybe(*values: bytes) -> st.SearchStrategy[bytes | None]:
    return st.sampled_from([None, *values])


messages = st.builds(
    FakeMessage,
    type=st.integers(1, 4),
    path=maybe(b"/p", b"/p", b"/q"),
    interface=maybe(b"i.A", b"i.A", b"i.B"),
    member=maybe(b"M", b"M", b"N"),
    error_name=maybe(b"e.E", b"e.E", b"e.F"),
    destination=maybe(b"n.a", *(name.encode() for name in [*well_known, DRIVER])),
    sender=maybe(b":1.7", DRIVER.encode()),
    reply_serial=st.sampled_from([0, 9]),
    n_fds=st.integers(0, 3),
)
connections = st.builds(
    FakeConnection,
    unique_name=st.sampled_from([b":1.7", b":1.8"]),
    names=st.sets(st.sampled_from(well_known)).map(lambda s: dict.fromkeys(n.encode() for n in s)),
)
peers = st.one_of(st.none(), connections)


@settings(max_examples=250, deadline=None)
@given(mostly(send_rule, receive_rule), messages, peers, st.booleans())
def test_sending_by_the_manual(
    rules: list[Written], msg: FakeMessage, receiver: FakeConnection | None, requested: bool
) -> None:
    policy = client(*rules)
    allowed = policy.may_send(None, msg, receiver, requested)
    verdict, matched = manual_verdict(rules, "send", msg, receiver, False, requested)
    assert allowed is verdict
    fitting = policy.fitting_sends(msg, receiver, requested)
    assert len(fitting) == matched
    assert policy.rule is (fitting[-1] if fitting else None)
    assert policy.log is bool(fitting and fitting[-1].log)
    assert policy.matched == (0 if allowed and not policy.log else matched)
    unrequested = msg.reply_serial != 0 and not requested
    if policy.send_open or (policy.send_types >> msg.type & 1 and not unrequested):
        assert allowed
        assert not policy.log


@settings(max_examples=250, deadline=None)
@given(mostly(receive_rule, send_rule), messages, peers, st.booleans(), st.booleans())
def test_receiving_by_the_manual(
    rules: list[Written],
    msg: FakeMessage,
    sender: FakeConnection | None,
    to_me: bool,
    requested: bool,
) -> None:
    policy = client(*rules)
    me = FakeConnection()
    addressed = me if to_me else None
    allowed = policy.may_receive(None, msg, sender, addressed, me, requested)
    # Eavesdropping is about messages "explicitly addressed to a name the application does not own"
    eavesdropping = not to_me and msg.destination is not None
    verdict, matched = manual_verdict(rules, "receive", msg, sender, eavesdropping, requested)
    assert allowed is verdict
    fitting = policy.fitting_receives(msg, sender, eavesdropping, requested)
    assert len(fitting) == matched
    assert policy.rule is (fitting[-1] if fitting else None)
    assert policy.matched == (0 if allowed else matched)
    unrequested = msg.reply_serial != 0 and not requested
    if policy.receive_open or (policy.receive_open_direct and not eavesdropping):
        assert allowed
    if policy.receive_types >> msg.type & 1 and not eavesdropping and not unrequested:
        assert allowed


own_rules = st.lists(
    st.tuples(
        st.sampled_from(["allow", "deny"]),
        st.one_of(
            st.builds(lambda name: {"own": name}, st.sampled_from([*well_known, "*"])),
            st.builds(lambda name: {"own_prefix": name}, st.sampled_from(well_known)),
        ),
    ),
    max_size=5,
)


@given(own_rules, st.sampled_from([*well_known, "n.a.c", "x"]))
def test_owning_by_the_manual(rules: list[Written], name: str) -> None:
    policy = client(*rules)
    verdict, matched = False, 0
    for element, attributes in rules:
        own, prefix = attributes.get("own"), attributes.get("own_prefix")
        if own in ("*", name) or (prefix and in_namespace(name, prefix)):
            verdict = element == "allow"
            matched += 1
    assert policy.may_own(name.encode()) is verdict
    assert policy.matched == (0 if verdict else matched)
    if policy.own_open:
        assert verdict


connect_rules = st.lists(
    st.tuples(
        st.sampled_from(["allow", "deny"]),
        st.one_of(
            st.builds(lambda name: {"user": name}, st.sampled_from(["u1", "u2", "*"])),
            st.builds(lambda name: {"group": name}, st.sampled_from(["g1", "g2", "*"])),
        ),
    ),
    max_size=4,
)


@given(connect_rules, connect_rules, st.integers(0, 3), st.lists(st.integers(0, 3)))
def test_connecting_by_the_manual(
    default: list[Written], mandatory: list[Written], uid: int, gids: list[int]
) -> None:
    spec = [entry(rule, scope="mandatory") for rule in mandatory]
    policy_set = PolicySet([*spec, *(entry(rule) for rule in default)])
    verdict = uid == 0
    for element, attributes in default + mandatory:
        user, group = attributes.get("user"), attributes.get("group")
        mine = user in ("*", f"u{uid}") or group in ("*", *(f"g{gid}" for gid in gids))
        if mine:
            verdict = element == "allow"
    assert policy_set.may_connect(uid, gids, 0) is verdict
    assert not policy_set.may_connect(uid, None, 0)


scopes = st.sampled_from(
    [("default", -1), ("mandatory", -1), ("console", -1), ("no_console", -1)]
    + [(kind, id) for kind in ("user", "group") for id in (1, 2)]
)


@given(
    st.lists(st.tuples(scopes, own_rules), max_size=8),
    st.sampled_from([NO_UID, 1, 2, 3]),
    st.lists(st.integers(1, 3), max_size=3),
    st.booleans(),
)
def test_order_of_scopes(
    blocks: list[tuple[tuple[str, int], list[Written]]], uid: int, gids: list[int], console: bool
) -> None:
    policy_set = PolicySet(
        entry(rule, line, *scope)
        for line, (scope, rules) in enumerate(blocks)
        for rule in rules
    )  # fmt: skip
    order: list[tuple[str, int]] = [("default", -1)]
    order += [("group", gid) for gid in sorted(set(gids))]
    if uid != NO_UID:
        order += [("user", uid), ("console" if console else "no_console", -1)]
    order += [("mandatory", -1)]
    lines = [
        line
        for scope in order
        for line, (have, rules) in enumerate(blocks)
        for _ in rules
        if have == scope
    ]
    policy = policy_set.client(uid, gids, console)
    assert [rule.line for rule in policy.owns] == lines
    assert policy_set.client(uid, [*gids, *gids], console) is policy


# Cases with names


SESSION = (
    allow(send_destination="*", eavesdrop="true"),
    allow(eavesdrop="true"),
    allow(own="*"),
)
SYSTEM = (
    deny(own="*"),
    deny(send_type="method_call"),
    allow(send_type="signal"),
    allow(send_requested_reply="true", send_type="method_return"),
    allow(send_requested_reply="true", send_type="error"),
    allow(receive_type="method_call"),
    allow(receive_type="method_return"),
    allow(receive_type="error"),
    allow(receive_type="signal"),
    allow(send_destination=DRIVER, send_interface=DRIVER),
    deny(send_destination=DRIVER, send_interface=DRIVER, send_member="UpdateIt"),
)


def test_the_session_bus_is_open() -> None:
    policy = client(*SESSION)
    assert policy.send_open
    assert policy.receive_open
    assert policy.receive_open_direct
    assert policy.own_open
    assert policy.send_types == policy.receive_types == 0b11111


def test_the_system_bus_is_open_to_receivers_only() -> None:
    policy = client(*SYSTEM)
    assert not any([policy.send_open, policy.receive_open, policy.own_open])
    assert not policy.receive_open_direct  # not to replies that nobody asked for
    assert policy.receive_types == 0b11110
    assert policy.send_types == 0  # a signal to the driver may still be denied


@pytest.mark.parametrize(
    ("rules", "send_open", "send_types"),
    [
        ([], False, 0),
        ([allow(send_destination="*")], False, 0b11111),
        ([allow(send_destination="*", send_requested_reply="false")], True, 0b11111),
        ([allow(send_destination="*", eavesdrop="true", log="true")], False, 0),
        ([allow(send_destination="*", eavesdrop="true", max_fds="5")], False, 0),
        ([allow(send_broadcast="false", eavesdrop="true")], False, 0),
        ([allow(send_destination="*", eavesdrop="true"), allow(send_path="/")], True, 0b11111),
        ([allow(send_destination="*", eavesdrop="true"), deny(send_path="/")], False, 0),
        ([deny(send_path="/"), allow(send_destination="*", eavesdrop="true")], True, 0b11111),
        ([allow(send_destination="*"), deny(send_type="signal")], False, 0b01111),
        ([allow(send_destination="*", eavesdrop="true"), deny(eavesdrop="true")], True, 0b11111),
        (
            [
                allow(send_destination="*", eavesdrop="true"),
                deny(send_path="/", eavesdrop="true"),
            ],
            False,
            0,
        ),
        ([allow(send_destination="*", eavesdrop="true", min_fds="1")], False, 0),
    ],
)
def test_flags_for_sending(rules: list[Written], send_open: bool, send_types: int) -> None:
    policy = client(*rules)
    assert (policy.send_open, policy.send_types) == (send_open, send_types)


@pytest.mark.parametrize(
    ("rules", "receive_open", "direct", "types"),
    [
        ([allow(receive_sender="*")], False, False, 0b11111),
        ([allow(receive_sender="*", receive_requested_reply="false")], False, True, 0b11111),
        ([allow(eavesdrop="true")], True, True, 0b11111),
        ([allow(eavesdrop="true"), deny(receive_path="/", eavesdrop="true")], False, True, 0b11111),
        ([allow(eavesdrop="true"), deny(receive_path="/")], False, False, 0),
    ],
)
def test_flags_for_receiving(
    rules: list[Written], receive_open: bool, direct: bool, types: int
) -> None:
    policy = client(*rules)
    assert (policy.receive_open, policy.receive_open_direct, policy.receive_types) == (
        receive_open,
        direct,
        types,
    )


def test_who_decided_and_how_many_agreed() -> None:
    policy = client(*SYSTEM)
    driver = DRIVER.encode()
    call = FakeMessage(interface=driver, destination=driver)
    assert policy.may_send(None, call, None, False)
    assert (policy.rule.line, policy.matched, policy.log) == (10, 0, False)  # type: ignore[union-attr]
    call.member = b"UpdateIt"
    assert not policy.may_send(None, call, None, False)
    assert (policy.rule.file, policy.rule.line, policy.matched) == ("f", 11, 3)  # type: ignore[union-attr]
    call.interface = None
    assert not policy.may_send(None, call, None, False)
    assert policy.matched == 2  # a call without an interface is denied, not allowed
    assert policy.may_send(None, FakeMessage(type=2, reply_serial=1), FakeConnection(), True)
    assert not policy.may_send(None, FakeMessage(type=2, reply_serial=1), FakeConnection(), False)
    assert (policy.rule, policy.matched) == (None, 0)


def test_a_rule_that_wants_to_be_logged() -> None:
    policy = client(allow(send_type="signal"), allow(send_path="/p", log="true"))
    assert policy.may_send(None, FakeMessage(type=4), None, False)
    assert (policy.log, policy.matched) == (True, 2)
    assert policy.may_send(None, FakeMessage(type=4, path=b"/q"), None, False)
    assert (policy.log, policy.matched) == (False, 0)


def test_a_name_means_its_holders() -> None:
    policy = client(deny(send_destination="n.a"), deny(receive_sender="n.a"))
    waiting = FakeConnection(names={b"other": None, b"n.a": None})
    assert not policy.may_send(None, FakeMessage(destination=b"other"), waiting, False)
    assert policy.matched == 1
    assert not policy.may_send(None, FakeMessage(destination=b"n.a"), None, False)
    assert policy.matched == 1
    msg = FakeMessage(sender=b":1.7")
    assert not policy.may_receive(None, msg, waiting, None, FakeConnection(), False)
    assert policy.matched == 1
    assert not policy.may_send(None, FakeMessage(destination=b"n.a"), FakeConnection(), False)
    assert policy.matched == 0


def test_the_bus_itself_has_a_name_too() -> None:
    policy = client(allow(receive_type="signal"), deny(receive_sender=DRIVER))
    me = FakeConnection()
    for sender, peer, allowed in (
        (DRIVER.encode(), None, False),
        (b":1.0", None, True),
        (b":1.7", FakeConnection(), True),
    ):
        msg = FakeMessage(type=4, sender=sender, destination=None)
        assert policy.may_receive(None, msg, peer, None, me, False) is allowed


def test_a_later_rule_wins_whether_it_names_somebody_or_not() -> None:
    receiver = FakeConnection(names={b"n.a": None})
    for msg_receiver in (receiver, None):
        policy = client(deny(send_destination="n.a"), allow(send_type="method_call"))
        assert policy.may_send(None, FakeMessage(), msg_receiver, False)
        policy = client(deny(send_type="method_call"), allow(send_destination="n.a"))
        assert policy.may_send(None, FakeMessage(), msg_receiver, False)
        policy = client(allow(send_destination="n.a"), deny(send_destination="n.a"))
        assert not policy.may_send(None, FakeMessage(), msg_receiver, False)


def test_a_unique_name_is_a_name() -> None:
    policy = client(allow(send_destination=":1.7"), allow(send_destination_prefix=":1"))
    peer = FakeConnection(unique_name=b":1.7", names={b"n": None})
    assert policy.may_send(None, FakeMessage(destination=b"n"), peer, False)
    assert len(policy.fitting_sends(FakeMessage(destination=b"n"), peer, False)) == 2


def test_many_rules_about_few_names_and_few_rules_about_many_names() -> None:
    rules = [allow(send_destination=f"n.x{i}") for i in range(50)]
    policy = client(deny(send_type="method_call"), *rules, deny(send_destination="n.x7"))
    assert policy.may_send(None, FakeMessage(), FakeConnection(names={b"n.x3": 0}), False)
    many = FakeConnection(names={b"m.y%d" % i: 0 for i in range(200)} | {b"n.x9": 0})
    assert policy.may_send(None, FakeMessage(), many, False)
    assert policy.rule.line == 11  # type: ignore[union-attr]
    many.names[b"n.x7"] = 0
    assert not policy.may_send(None, FakeMessage(), many, False)
    assert (policy.rule.line, policy.matched) == (52, 4)  # type: ignore[union-attr]


def test_a_blanket_rule_wipes_out_what_it_does_not_match() -> None:
    # Seen with dbus-daemon 1.14.10: "Rejected send message, 0 matched rules".
    policy = client(
        allow(send_destination="*", eavesdrop="true"), deny(send_destination="*", min_fds="1")
    )
    assert not policy.may_send(None, FakeMessage(), None, False)
    assert (policy.rule, policy.matched) == (None, 0)
    assert not policy.send_open


def test_prefixes_end_at_dots() -> None:
    assert below(b"a.b", b"a.b")
    assert below(b"a.b.c", b"a.b")
    assert not below(b"a.bc", b"a.b")
    assert not below(b"a", b"a.b")


def test_one_object_for_all_who_have_no_rules_of_their_own() -> None:
    policy_set = PolicySet([entry(allow(own="*")), entry(deny(own="x"), scope="user", id=5)])
    assert policy_set.client(1, [7], True) is not policy_set.client(1, [7], False)
    assert policy_set.client(1, [7], False) is policy_set.client(2, [8, 9], False)
    assert policy_set.client(5, [], False) is not policy_set.client(1, [], False)
    assert not policy_set.asks_groups
    assert not policy_set.asks_console


def test_who_has_no_uid_is_not_at_the_console_and_not_away_from_it() -> None:
    policy_set = PolicySet([entry(allow(own="*"), scope="no_console")])
    assert policy_set.client(1, [], False).may_own(b"a")
    assert not policy_set.client(NO_UID, [], False).may_own(b"a")


def test_rules_that_wait_for_somebody_to_become_known() -> None:
    _, _, _, own = entry(deny(own="a"))
    connect = {"kind": "connect", "allow": False, "id": UNKNOWN, "name": b"ghost"}
    policy_set = PolicySet(
        [
            entry(allow(own="*")),
            entry(allow(user="*")),
            entry(allow(own="b"), scope="user", id=9),
            ("user", UNKNOWN, b"ghost", own),
            ("group", UNKNOWN, b"shades", own),
            ("mandatory", -1, b"", connect),
        ]
    )
    before = policy_set.client(9, [], False)
    assert before.own_open
    assert policy_set.may_connect(9, [], 0)
    policy_set.settle_user(b"nobody", 9)
    assert policy_set.client(9, [], False) is before
    policy_set.settle_user(b"ghost", 9)
    assert not policy_set.client(9, [], False).may_own(b"a")
    assert policy_set.client(8, [3], False).may_own(b"a")
    assert not policy_set.may_connect(9, [], 0)
    assert policy_set.may_connect(8, [9], 0)
    policy_set.settle_group(b"shades", 3)
    assert policy_set.asks_groups
    assert not policy_set.client(8, [3], False).may_own(b"a")
    assert not policy_set.unknown_users
    assert not policy_set.unknown_groups


@pytest.mark.parametrize(
    "bad",
    [
        ("nowhere", -1, b"", {"kind": "own", "allow": True}),
        ("default", -1, b"", {"kind": "rent", "allow": True}),
        ("user", 0, b"", {"kind": "connect", "allow": True}),
    ],
)
def test_specs_that_make_no_sense(bad: Any) -> None:
    with pytest.raises(KeyError):
        PolicySet([bad])
