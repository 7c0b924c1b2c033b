"""Explanations are held against the decisions that they explain, and what they offer is tried."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_policy import (
    FakeConnection,
    FakeMessage,
    People,
    Written,
    allow,
    connect_rules,
    deny,
    entry,
    messages,
    mostly,
    own_rules,
    peers,
    receive_rule,
    scopes,
    send_rule,
    well_known,
)

from jitney.broker import explain
from jitney.broker.explain import Decision, Remedy
from jitney.broker.policy import NO_UID, ClientPolicy, PolicySet
from jitney.compat.config import overridden
from jitney.compat.config.allowdeny import make_rule
from jitney.compat.config.render import rule_xml

Scope = tuple[str, int]
Blocks = list[tuple[Scope, list[Written]]]
Client = tuple[int, list[int], bool]

clients = st.tuples(
    st.sampled_from([NO_UID, 1, 1, 2, 3]), st.lists(st.integers(1, 3), max_size=3), st.booleans()
)


def blocks_of(rules: Any) -> st.SearchStrategy[Blocks]:
    return st.lists(st.tuples(scopes, rules), max_size=6)


def spec_of(blocks: Blocks) -> list[Any]:
    """Each rule with a line of its own."""
    rules = [(scope, rule) for scope, some in blocks for rule in some]
    return [entry(rule, line, *scope) for line, (scope, rule) in enumerate(rules, 1)]


def lines(placed: Any) -> list[int]:
    return [each.rule.line for each in placed]


def read_back(rule: Any) -> Written:
    element = ElementTree.fromstring(rule_xml(rule))
    return element.tag, dict(element.attrib)


def with_remedy(blocks: Blocks, found: Remedy) -> ClientPolicy | Any:
    """The set to which the remedy was added, as a file would."""
    return PolicySet([*spec_of(blocks), entry(read_back(found.rule), 99, found.scope, found.id)])


def holds_together(
    decision: Decision, policy: ClientPolicy, allowed: bool, fitting: list[Any]
) -> None:
    assert decision.allowed is allowed
    assert (decision.decider.rule if decision.decider else None) is policy.rule
    all_fitting = [*decision.overridden, *([decision.decider] if decision.decider else [])]
    assert [placed.rule for placed in all_fitting] == fitting
    if decision.wiped:
        assert decision.blanket is not None
        assert decision.blanket.rule.blanket


@settings(max_examples=250, deadline=None)
@given(blocks_of(mostly(send_rule, receive_rule)), clients, messages, peers, st.booleans())
def test_sending(
    blocks: Blocks,
    who: Client,
    msg: FakeMessage,
    receiver: FakeConnection | None,
    requested: bool,
) -> None:
    policies = PolicySet(spec_of(blocks))
    policy = policies.client(*who)
    allowed = policy.may_send(None, msg, receiver, requested)
    mine = explain.blocks_for(policies, *who)
    decision = explain.explain_send(mine, msg, receiver, requested)
    holds_together(decision, policy, allowed, policy.fitting_sends(msg, receiver, requested))
    assert explain.blocks_in_force(policies, policy, who[0]) == mine
    if allowed:
        return
    rule = explain.rule_to_send(msg, explain.well_known(msg.destination, receiver), requested)
    found = explain.remedy(
        mine, decision, rule, lambda tried: explain.explain_send(tried, msg, receiver, requested)
    )
    assert found is not None
    assert not rule.blanket
    assert with_remedy(blocks, found).client(*who).may_send(None, msg, receiver, requested)


@settings(max_examples=250, deadline=None)
@given(
    blocks_of(mostly(receive_rule, send_rule)), clients, messages, peers, st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_receiving(
    blocks: Blocks,
    who: Client,
    msg: FakeMessage,
    sender: FakeConnection | None,
    to_me: bool,
    requested: bool,
) -> None:
    policies = PolicySet(spec_of(blocks))
    policy = policies.client(*who)
    me = FakeConnection()
    addressed = me if to_me else None
    eavesdropping = not to_me and msg.destination is not None
    allowed = policy.may_receive(None, msg, sender, addressed, me, requested)
    mine = explain.blocks_for(policies, *who)
    decision = explain.explain_receive(mine, msg, sender, eavesdropping, requested)
    fitting = policy.fitting_receives(msg, sender, eavesdropping, requested)
    holds_together(decision, policy, allowed, fitting)
    if allowed:
        return
    name = explain.well_known(msg.sender, sender)
    rule = explain.rule_to_receive(msg, name, eavesdropping, requested)
    found = explain.remedy(
        mine, decision, rule,
        lambda tried: explain.explain_receive(tried, msg, sender, eavesdropping, requested),
    )  # fmt: skip
    assert found is not None
    assert not rule.blanket
    changed = with_remedy(blocks, found).client(*who)
    assert changed.may_receive(None, msg, sender, addressed, me, requested)


@given(blocks_of(own_rules), clients, st.sampled_from([*well_known, "n.a.c", "x"]))
def test_owning(blocks: Blocks, who: Client, name: str) -> None:
    policies = PolicySet(spec_of(blocks))
    policy = policies.client(*who)
    allowed = policy.may_own(name.encode())
    mine = explain.blocks_for(policies, *who)
    decision = explain.explain_own(mine, name.encode())
    holds_together(decision, policy, allowed, policy.fitting_owns(name.encode()))
    if not allowed:
        rule = explain.OwnRule(True, name.encode())
        found = explain.remedy(
            mine, decision, rule, lambda tried: explain.explain_own(tried, name.encode())
        )
        assert found is not None
        assert with_remedy(blocks, found).client(*who).may_own(name.encode())


@given(connect_rules, connect_rules, st.integers(0, 3), st.lists(st.integers(0, 3)))
def test_connecting(
    default: list[Written], mandatory: list[Written], uid: int, gids: list[int]
) -> None:
    spec = [entry(rule, scope="mandatory") for rule in mandatory]
    spec += [entry(rule) for rule in default]
    policies = PolicySet(spec)
    mine = explain.connect_blocks(policies)
    decision = explain.explain_connect(mine, uid, gids, 0)
    assert decision.allowed is policies.may_connect(uid, gids, 0)
    nobody = explain.explain_connect(mine, uid, None, 0)
    assert nobody.allowed is policies.may_connect(uid, None, 0)
    rule = explain.ConnectRule(True, uid, False, f"u{uid}".encode())
    if not decision.allowed:
        found = explain.remedy(
            mine, decision, rule, lambda tried: explain.explain_connect(tried, uid, gids, 0)
        )
        assert found is not None
        added = entry(read_back(found.rule), 99, found.scope, found.id)
        assert PolicySet([*spec, added]).may_connect(uid, gids, 0)
    if not nobody.allowed:
        assert (
            explain.remedy(
                mine, nobody, rule, lambda tried: explain.explain_connect(tried, uid, None, 0)
            )
            is None
        )


@settings(max_examples=300, deadline=None)
@given(st.one_of(send_rule, receive_rule))
def test_a_rule_is_read_as_it_was_written(written: Written) -> None:
    arguments = entry(written)[3]
    rule = explain.MessageRule(**{k: v for k, v in arguments.items() if k != "kind"})
    assert entry(read_back(rule))[3] == arguments


def test_what_no_attribute_may_hold_is_escaped() -> None:
    rule = make_rule("allow", {"own": '<&">\t\n'}, "f", 1, People())
    assert rule_xml(explain.OwnRule(True, rule.name.encode())) == (
        '<allow own="&lt;&amp;&quot;>&#9;&#10;"/>'
    )


# What is only there to be told


def test_rules_before_a_blanket_one_are_told() -> None:
    spec = [
        entry(allow(send_destination="n.a"), 1),
        entry(deny(send_interface="i.A"), 2),
        entry(allow(send_requested_reply="true", max_fds="0"), 3),
        entry(deny(send_destination="n.a"), 4, "user", 1),
    ]
    policies = PolicySet(spec)
    mine = explain.blocks_for(policies, 1, [], False)
    receiver = FakeConnection(names={b"n.a": None})
    found = explain.explain_send(mine, FakeMessage(), receiver, False)
    assert not found.allowed
    assert found.decider is not None
    assert (found.decider.scope, found.decider.id, found.decider.rule.line) == ("user", 1, 4)
    assert lines(found.overridden) == [3]
    assert lines(found.wiped) == [1, 2]
    # With descriptors nothing is left that fits: the blanket rule does not either.
    nobody = explain.blocks_for(policies, 2, [], False)
    found = explain.explain_send(nobody, FakeMessage(n_fds=1), receiver, False)
    assert not found.allowed
    assert found.decider is None
    assert found.blanket is not None
    assert found.blanket.rule.line == 3
    assert lines(found.wiped) == [1, 2]


def where(*rules: Any, who: Client = (1, [], False)) -> tuple[str, int, int]:
    """Scope and id of the remedy, and the line it must be behind."""
    policies = PolicySet(rules)
    mine = explain.blocks_for(policies, *who)
    receiver = FakeConnection(names={b"n.a": None})
    msg = FakeMessage()
    denied = explain.explain_send(mine, msg, receiver, False)
    assert not denied.allowed
    found = explain.remedy(
        mine, denied, explain.rule_to_send(msg, b"n.a", False),
        lambda tried: explain.explain_send(tried, msg, receiver, False),
    )  # fmt: skip
    assert found is not None
    return found.scope, found.id, found.behind.rule.line if found.behind else 0


def test_where_a_remedy_has_to_stand() -> None:
    no = deny(send_destination="n.a")
    assert where() == ("user", 1, 0)
    assert where(entry(no, 5)) == ("user", 1, 0)
    assert where(entry(no, 5, "user", 1)) == ("user", 1, 5)
    assert where(entry(no, 5, "group", 2), who=(1, [2], False)) == ("user", 1, 0)
    assert where(entry(no, 5, "console"), who=(1, [], True)) == ("console", -1, 5)
    assert where(entry(no, 5, "mandatory")) == ("mandatory", -1, 5)
    assert where(entry(no, 5), who=(NO_UID, [], False)) == ("default", -1, 5)
    # A blanket rule wipes out what no rule of its own scope is behind.
    blanket = allow(send_requested_reply="true", min_fds="1")
    assert where(entry(blanket, 5, "mandatory")) == ("mandatory", -1, 5)


def test_the_rule_offered_is_narrow() -> None:
    def written(msg: FakeMessage, requested: bool = False) -> str:
        return rule_xml(explain.rule_to_send(msg, b"n.a", requested))

    assert written(FakeMessage()) == (
        '<allow send_destination="n.a" send_interface="i.A" send_member="M"/>'
    )
    assert written(FakeMessage(interface=None)) == (
        '<allow send_destination="n.a" send_path="/p" send_member="M"/>'
    )
    assert written(FakeMessage(type=4, destination=None)) == (
        '<allow send_type="signal" send_interface="i.A" send_member="M" send_broadcast="true"/>'
    )
    error = FakeMessage(type=3, error_name=b"e.E", reply_serial=1)
    assert written(error, True) == (
        '<allow send_destination="n.a" send_type="error" send_error="e.E"/>'
    )
    assert written(error).endswith(' send_requested_reply="false"/>')
    bare = FakeMessage(interface=None, path=None, member=None)
    assert rule_xml(explain.rule_to_send(bare, None, False)) == ('<allow send_type="method_call"/>')


# Rules that never decide


@settings(max_examples=250, deadline=None)
@given(
    blocks_of(mostly(send_rule, send_rule)), clients, messages, peers, st.booleans()
)  # fmt: skip
def test_what_is_overridden_never_decides_sending(
    blocks: Blocks,
    who: Client,
    msg: FakeMessage,
    receiver: FakeConnection | None,
    requested: bool,
) -> None:
    spec = spec_of(blocks)
    dead = {each.rule.line for each in overridden.find(spec) if not each.but_replies}
    policy = PolicySet(spec).client(*who)
    policy.may_send(None, msg, receiver, requested)
    assert policy.rule is None or policy.rule.line not in dead


@settings(max_examples=250, deadline=None)
@given(
    blocks_of(mostly(receive_rule, receive_rule)), clients, messages, peers, st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_what_is_overridden_never_decides_receiving(
    blocks: Blocks,
    who: Client,
    msg: FakeMessage,
    sender: FakeConnection | None,
    to_me: bool,
    requested: bool,
) -> None:
    spec = spec_of(blocks)
    dead = {each.rule.line for each in overridden.find(spec) if not each.but_replies}
    policy = PolicySet(spec).client(*who)
    me = FakeConnection()
    policy.may_receive(None, msg, sender, me if to_me else None, me, requested)
    assert policy.rule is None or policy.rule.line not in dead


@given(blocks_of(own_rules), clients, st.sampled_from([*well_known, "n.a.c", "x"]))
def test_what_is_overridden_never_decides_owning(blocks: Blocks, who: Client, name: str) -> None:
    spec = spec_of(blocks)
    dead = {each.rule.line for each in overridden.find(spec) if not each.but_replies}
    policy = PolicySet(spec).client(*who)
    policy.may_own(name.encode())
    assert policy.rule is None or policy.rule.line not in dead


def test_what_is_found_to_be_overridden() -> None:
    def dead(*rules: Any) -> list[tuple[int, int, str]]:
        """Whose line, by which, and how."""
        how = {(False, False): "", (True, False): "wiped", (False, True): "but replies"}
        return [
            (each.rule.line, each.by.line, how[each.wiped, each.but_replies])
            for each in overridden.find(rules)
        ]

    one, other = deny(send_destination="n.a"), allow(send_destination="n.a")
    narrow = allow(send_destination="n.a", send_interface="i.A")
    assert dead(entry(narrow, 1), entry(other, 2)) == [(1, 2, "")]
    assert dead(entry(other, 1), entry(narrow, 2)) == []
    # An allow means requested replies, a deny the others.
    assert dead(entry(narrow, 1), entry(one, 2)) == [(1, 2, "but replies")]
    unrequested = deny(send_destination="n.a", send_requested_reply="true")
    assert dead(entry(narrow, 1), entry(unrequested, 2)) == [(1, 2, "")]
    replies = allow(send_destination="n.a", send_type="error")
    assert dead(entry(replies, 1), entry(one, 2)) == []
    assert dead(entry(one, 1), entry(one, 2), entry(one, 3)) == [(1, 2, ""), (2, 3, "")]
    # Another policy is not the same, but for the mandatory one.
    assert dead(entry(one, 1), entry(one, 2, "user", 1)) == []
    assert dead(entry(one, 1, "user", 2), entry(one, 2, "user", 1)) == []
    assert dead(entry(one, 2, "user", 2), entry(one, 1, "mandatory")) == [(2, 1, "")]
    below = deny(send_destination_prefix="n")
    assert dead(entry(one, 1), entry(below, 2)) == [(1, 2, "")]
    assert dead(entry(below, 1), entry(one, 2)) == []
    # A deny is about messages without an interface, too; the allow is not.
    refused = deny(send_destination="n.a", send_interface="i.A", send_requested_reply="true")
    assert dead(entry(narrow, 1), entry(refused, 2)) == [(1, 2, "")]
    assert dead(entry(refused, 1), entry(narrow, 2)) == []
    blanket = allow(send_requested_reply="true", min_fds="1")
    assert dead(entry(one, 1), entry(blanket, 2)) == [(1, 2, "wiped")]
    assert dead(entry(allow(own="n.a"), 1), entry(deny(own_prefix="n"), 2)) == [(1, 2, "")]
    assert dead(entry(allow(user="u1"), 1), entry(deny(user="*"), 2)) == [(1, 2, "")]
    assert dead(entry(allow(user="u1"), 1), entry(deny(group="g1"), 2)) == []
    elsewhere = entry(other, 2)
    elsewhere[3]["file"] = "g"
    assert dead(entry(narrow, 1), elsewhere) == []
