"""Explain: why the policy decides as it does, and which rule would make it say yes.

Invariant: a verdict given here is the one that `ClientPolicy` and `PolicySet` give, and a rule that
is offered has been tried: with it added, the verdict is yes. Nothing is kept for this while the
bus runs: it reads the lists of the PolicySet, which hold all rules, also those that a blanket rule
wipes out of a ClientPolicy. Nothing here is on the way of a message.

Each question takes *blocks*, as `blocks_for()` makes them: the rules that hold for one client, by
scope and id, in the order in which they apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .policy import ClientPolicy, PolicySet
from .policy_rules import ANYBODY, EITHER, YES, ConnectRule, Facts, MessageRule, OwnRule

if TYPE_CHECKING:
    from .policy_rules import Connection, Message

    Rule = MessageRule | OwnRule | ConnectRule
    Block = tuple[str, int, Sequence[Any]]
    Blocks = Sequence[Block]

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4

UNNAMED = b"\0"
"""A path or member that no rule names: a message has one, and nobody cares which."""


@dataclass(slots=True)
class ImaginedMessage:
    """A message that nobody has sent; see `policy_rules.Message`."""

    type: int = CALL
    path: bytes | None = None
    interface: bytes | None = None
    member: bytes | None = None
    error_name: bytes | None = None
    destination: bytes | None = None
    sender: bytes | None = None
    reply_serial: int = 0
    n_fds: int = 0


@dataclass(slots=True)
class ImaginedConnection:
    """A client that may not be there; see `policy_rules.Connection`."""

    unique_name: bytes = b""
    names: dict[bytes, Any] = field(default_factory=dict)


class Placed(NamedTuple):
    """A rule and the policy that it stands in: scope and id as in a spec."""

    scope: str
    id: int
    rule: Any


class Decision(NamedTuple):
    """A verdict and all the rules that fit, in the order in which they apply.

    `decider` is the one that decided; None: none did, which is a no (for connecting: a yes for the
    bus's own user). `overridden` fit, too, and stand before it. `wiped` would fit, but stand before
    `blanket`, the last blanket rule, which need not fit itself."""

    allowed: bool
    decider: Placed | None = None
    overridden: tuple[Placed, ...] = ()
    wiped: tuple[Placed, ...] = ()
    blanket: Placed | None = None


class Remedy(NamedTuple):
    """A rule that would allow what is denied, at the end of the policy for this scope and id.

    `behind`: it has to be read after this one; None: no rule of the same policy is in its way."""

    scope: str
    id: int
    rule: Any
    behind: Placed | None


def blocks_for(policies: PolicySet, uid: int, gids: Sequence[int], at_console: bool) -> Blocks:
    """What holds for such a client, as `PolicySet.client()` would find it; uid NO_UID: no user."""
    return _labelled(policies, policies.key(uid, gids, at_console), uid)


def blocks_in_force(policies: PolicySet, policy: ClientPolicy, uid: int) -> Blocks:
    """What holds for a client that was given this policy of the set."""
    if policy.key is None:
        raise ValueError("the policy is not one of the set's")
    return _labelled(policies, policy.key, uid)


def _labelled(policies: PolicySet, key: tuple[int, tuple[int, ...], bool], uid: int) -> Blocks:
    # A user without rules has no number in the key, but will get one in what is said.
    return [
        (scope, uid if scope == "user" else id, rules) for scope, id, rules in policies.blocks(key)
    ]


# The questions


def explain_send(
    blocks: Blocks, msg: Message, receiver: Connection | None, requested_reply: bool
) -> Decision:
    """`ClientPolicy.may_send()`: the blocks are the sender's."""
    facts = Facts(msg, requested_reply)
    return _decide_message(blocks, True, lambda rule: rule.fits_send(facts, receiver))


def explain_receive(
    blocks: Blocks,
    msg: Message,
    sender: Connection | None,
    eavesdropping: bool,
    requested_reply: bool,
) -> Decision:
    """`ClientPolicy.may_receive()`: the blocks are the receiver's. Who gets what was sent to
    another one is eavesdropping."""
    facts = Facts(msg, requested_reply)
    return _decide_message(
        blocks, False, lambda rule: rule.fits_receive(facts, sender, eavesdropping)
    )


def explain_own(blocks: Blocks, name: bytes) -> Decision:
    """`ClientPolicy.may_own()`."""
    return _decision(
        [
            Placed(scope, id, rule)
            for scope, id, rules in blocks
            for rule in rules
            if isinstance(rule, OwnRule) and rule.fits(name)
        ]
    )


def explain_connect(blocks: Blocks, uid: int, gids: Sequence[int] | None, bus_uid: int) -> Decision:
    """`PolicySet.may_connect()`: the blocks are those of `connect_blocks()`."""
    if gids is None:
        return Decision(False)
    fitting = [
        Placed(scope, id, rule)
        for scope, id, rules in blocks
        for rule in rules
        if rule.fits(uid, gids)
    ]
    return _decision(fitting) if fitting else Decision(uid == bus_uid)


def connect_blocks(policies: PolicySet) -> Blocks:
    """The rules about connecting, which are the same for everybody."""
    return [
        ("default", ANYBODY, policies.connect_default),
        ("mandatory", ANYBODY, policies.connect_mandatory),
    ]


def _decide_message(blocks: Blocks, send: bool, fits: Callable[[Any], bool]) -> Decision:
    wiped: list[Placed] = []
    fitting: list[Placed] = []
    blanket = None
    # A policy may be long, and the bus waits meanwhile: one walk, nothing made of what fits not.
    for scope, id, rules in blocks:
        for rule in rules:
            if not isinstance(rule, MessageRule) or rule.send != send:
                continue
            if rule.blanket:
                blanket = Placed(scope, id, rule)
                wiped += fitting
                fitting.clear()
            if fits(rule):
                fitting.append(Placed(scope, id, rule))
    return _decision(fitting)._replace(wiped=tuple(wiped), blanket=blanket)


def _decision(fitting: Sequence[Placed]) -> Decision:
    if not fitting:
        return Decision(False)
    return Decision(fitting[-1].rule.allow, fitting[-1], tuple(fitting[:-1]))


# What would help


def remedy(
    blocks: Blocks,
    denied: Decision,
    rule: Rule,
    ask: Callable[[Blocks], Decision],
) -> Remedy | None:
    """The narrowest policy in which `rule` would turn the decision, if there is one.

    `ask` is the question that was answered with `denied`, for other blocks."""
    scopes = [scope for scope, _, _ in blocks]
    # Anybody who is no user has only the policies for all.
    first = ("user", "console", "no_console") if "user" in scopes else ("default",)
    for wanted in (*first, "mandatory"):
        for place, (scope, id, _) in enumerate(blocks, 1):
            if scope != wanted:
                continue
            if ask([*blocks[:place], (scope, id, [rule]), *blocks[place:]]).allowed:
                obstacle = denied.decider or denied.blanket
                if obstacle is not None and (obstacle.scope, obstacle.id) != (scope, id):
                    obstacle = None
                return Remedy(scope, id, rule, obstacle)
    return None


def rule_to_send(msg: Message, receiver_name: bytes | None, requested_reply: bool) -> MessageRule:
    """A rule that lets this message be sent and as little else as it can."""
    broadcast = msg.type == SIGNAL and msg.destination is None
    about = _about(msg)
    if not broadcast:
        about["peer"] = receiver_name
    return MessageRule(
        True,
        True,
        broadcast=YES if broadcast else EITHER,
        requested_reply=msg.reply_serial == 0 or requested_reply,
        **about,
        type=_type(msg, about),
    )


def rule_to_receive(
    msg: Message, sender_name: bytes | None, eavesdropping: bool, requested_reply: bool
) -> MessageRule:
    """The same for receiving it."""
    about = _about(msg)
    about["peer"] = sender_name
    return MessageRule(
        True,
        False,
        eavesdrop=eavesdropping,
        requested_reply=msg.reply_serial == 0 or requested_reply,
        **about,
        type=_type(msg, about),
    )


def well_known(name: bytes | None, conn: Connection | None) -> bytes | None:
    """How a rule can call somebody: by the name that was used, or by one that it has. Unique names
    are others tomorrow."""
    if conn is None:
        return None if name is None or name[:1] == b":" else name
    if name in conn.names:
        return name
    for held in conn.names:
        return held
    return None


def _about(msg: Message) -> dict[str, Any]:
    if msg.error_name is not None:
        return {"error": msg.error_name}  # neither interface nor member may stand beside it
    place = "path" if msg.interface is None else "interface"
    where = getattr(msg, place)
    if where is None or where == UNNAMED:
        return {}
    return {place: where, "member": None if msg.member == UNNAMED else msg.member}


def _type(msg: Message, about: dict[str, Any]) -> int:
    # A rule that named nothing at all would be a blanket one and wipe out all others.
    named = any(value is not None for value in about.values())
    return 0 if msg.type == CALL and named else msg.type
