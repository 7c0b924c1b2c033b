"""Policy: who may connect, own a name, send a message, receive one.

Invariant: the last rule that fits decides, in the order default, groups, user, console, mandatory;
where no rule fits the answer is no. A policy is plain data: it knows neither XML nor user names,
and one ClientPolicy serves all connections that the same rules hold for.

Semantics are dbus-daemon's to the letter (its manual, section "<policy>", and what it does where
the manual is silent). One thing surprises: a *blanket* rule (no type, path, interface, member,
error or name) wipes out all earlier rules of its direction, even if it only fits some messages
(by `eavesdrop`, `min_fds`, ...). What it does not fit is then denied, never opened, since the
default is no.

`PolicySet(spec)` takes what `Config.policy_spec()` makes: a list of (scope, id, name, rule). The
scope is "default", "mandatory", "user", "group", "console" or "no_console"; the id a uid or gid,
or UNKNOWN if only the name is known; the rule a dict of the arguments of a class of
`policy_rules.py`, plus its "kind": "message", "own" or "connect".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .policy_rules import (
    ANYBODY,
    UNKNOWN,
    ConnectRule,
    Facts,
    MessageRule,
    OwnRule,
    holds,
    holds_below,
)

if TYPE_CHECKING:
    from .policy_rules import Connection, Message

    Spec = Iterable[tuple[str, int, bytes, dict[str, Any]]]

# The uid of a client that has none: it came in anonymously.
NO_UID = -1


def without_overridden(rules: list[MessageRule]) -> list[MessageRule]:
    """The rules from the last blanket one on; see the file's head."""
    start = 0
    for i, rule in enumerate(rules):
        if rule.blanket:
            start = i
    return rules[start:]


ALL_TYPES = 0b11111


def open_types(
    rules: list[MessageRule], unrequested: bool, eavesdropping: bool, known: bool = False
) -> int:
    """The message types, as bits, that are allowed without a look at the message.

    Bit 0 stands for types that nobody knows. A type is open if, read from the end, there is an
    unconditional allow before any deny. The answer covers unrequested replies and (for rules about
    receiving) eavesdropped messages only where it was asked to. `known`: all the rules are about
    the other side as it is."""
    types = 0
    for bit in range(5):
        for rule in reversed(rules):
            if rule.type and rule.type != bit:
                continue
            if not rule.allow:
                if rule.eavesdrop and not rule.send and not eavesdropping:
                    continue
                break
            if rule.log:
                break  # somebody wants to read about it
            if not (rule.plain if known else rule.unconditional):
                continue
            if eavesdropping and not rule.send and not rule.eavesdrop:
                continue
            if unrequested and rule.requested_reply and not rule.eavesdrop:
                continue
            types |= 1 << bit
            break
    return types


def by_peer(rules: list[MessageRule]) -> tuple[list[int], dict[bytes, list[int]]]:
    """Places of rules in their list, last first: those without a peer's name, and by that name."""
    general: list[int] = []
    named: dict[bytes, list[int]] = {}
    for i in range(len(rules) - 1, -1, -1):
        peer = rules[i].peer
        if peer is None:
            general.append(i)
        else:
            named.setdefault(peer, []).append(i)
    return general, named


def candidates(
    named: dict[bytes, list[int]], conn: Connection | None, name: bytes | None
) -> list[list[int]]:
    """The lists of `named` that can apply to a connection or, where there is none, a bare name."""
    found: list[list[int]] = []
    if conn is None:
        if name is not None and name in named:
            found.append(named[name])
    elif len(named) <= len(conn.names):
        for peer, places in named.items():
            if holds(conn, peer):
                found.append(places)
    else:
        if conn.unique_name in named:
            found.append(named[conn.unique_name])
        for held in conn.names:
            if held in named:
                found.append(named[held])
    return found


def places(general: list[int], named: dict[bytes, list[int]], conn: Connection) -> list[int]:
    """Of the rules that `by_peer()` sorted, those that can be about this connection, in order."""
    found = set(general)
    for some in candidates(named, conn, None):
        found.update(some)
    return sorted(found)


_numbers = itertools.count(1)


class ClientPolicy:
    """The rules that hold for one kind of client, and the decisions that follow from them.

    After a `may_…` call: `rule` is the rule that decided (None: none applied, hence no), `log`
    whether that rule wants the decision logged, and `matched`, after a refusal or with `log`, how
    many rules applied (dbus-daemon's "N matched rules"); it is 0 where nobody will be told.

    The flags spare the hot path those calls. `send_open`, `receive_open`, `own_open`: the answer is
    always yes. `receive_open_direct`: always yes to what is not eavesdropped. `send_types` and
    `receive_types`: bit t is set if messages of type t may always be sent, or received without
    eavesdropping, unless they are replies that nobody requested. All of them leave it to the caller
    to refuse message types above 4. `number` tells it from all other policies there ever were."""

    def __init__(self, rules: Iterable[MessageRule | OwnRule]) -> None:
        """`rules` in the order in which they apply."""
        self.number = next(_numbers)
        sends: list[MessageRule] = []
        receives: list[MessageRule] = []
        self.owns: list[OwnRule] = []
        for rule in rules:
            if isinstance(rule, OwnRule):
                self.owns.append(rule)
            elif rule.send:
                sends.append(rule)
            else:
                receives.append(rule)
        self.sends = without_overridden(sends)
        self.receives = without_overridden(receives)
        self.general_sends, self.named_sends = by_peer(self.sends)
        self.general_receives, self.named_receives = by_peer(self.receives)
        self.send_open = open_types(self.sends, True, True) == ALL_TYPES
        self.receive_open = open_types(self.receives, True, True) == ALL_TYPES
        self.receive_open_direct = open_types(self.receives, True, False) == ALL_TYPES
        self.send_types = open_types(self.sends, False, False)
        self.receive_types = open_types(self.receives, False, False)
        self.own_open = False
        for own in reversed(self.owns):
            if not own.allow:
                break
            if own.name is None:
                self.own_open = True
                break
        self.matched = 0
        self.log = False
        self.rule: MessageRule | OwnRule | None = None
        # For whom it is, as `PolicySet.key()` has it; None if it belongs to no set.
        self.key: tuple[int, tuple[int, ...], bool] | None = None

    def may_send(
        self, bus: object, msg: Message, receiver: Connection | None, requested_reply: bool
    ) -> bool:
        """Whether the client may send this message to `receiver`; None: the bus, or a service that
        would have to be started. `requested_reply`: the receiver awaits it as a reply.

        `bus` is the one the message travels on; the connections know all that is asked today."""
        facts = Facts(msg, requested_reply)
        rules = self.sends
        best = -1
        for i in self.general_sends:
            rule: MessageRule = rules[i]
            if rule.fits_send(facts, receiver):
                best = i
                break
        if self.named_sends:
            for places in candidates(self.named_sends, receiver, facts.destination):
                for i in places:
                    if i <= best:
                        break
                    rule = rules[i]
                    if rule.fits_send(facts, receiver):
                        best = i
                        break
        if best < 0:
            return self.decide(None)
        allowed = self.decide(rules[best])
        if not allowed or self.log:
            self.matched = len(self.fitting_sends(msg, receiver, requested_reply))
        return allowed

    def may_receive(
        self,
        bus: object,
        msg: Message,
        sender: Connection | None,
        addressed: Connection | None,
        proposed: Connection | None,
        requested_reply: bool,
    ) -> bool:
        """Whether the client (`proposed`) may get this message of `sender` (None: the bus), which
        was sent to `addressed` (None: to the bus or to nobody)."""
        facts = Facts(msg, requested_reply)
        rules = self.receives
        eavesdropping = addressed is not proposed and facts.destination is not None
        best = -1
        for i in self.general_receives:
            rule: MessageRule = rules[i]
            if rule.fits_receive(facts, sender, eavesdropping):
                best = i
                break
        if self.named_receives:
            for places in candidates(self.named_receives, sender, facts.sender):
                for i in places:
                    if i <= best:
                        break
                    rule = rules[i]
                    if rule.fits_receive(facts, sender, eavesdropping):
                        best = i
                        break
        if best < 0:
            return self.decide(None)
        allowed = self.decide(rules[best])
        if not allowed or self.log:
            self.matched = len(self.fitting_receives(msg, sender, eavesdropping, requested_reply))
        return allowed

    def types_to(self, receiver: Connection) -> int:
        """`send_types` for messages to this receiver, as long as it has the names it has."""
        rules = []
        for i in places(self.general_sends, self.named_sends, receiver):
            rule: MessageRule = self.sends[i]
            # With both, which no configuration can say, the name alone counts, as in `fits_send()`.
            if rule.peer is not None or rule.prefix is None or holds_below(receiver, rule.prefix):
                rules.append(rule)
        return open_types(rules, False, False, True)

    def types_from(self, sender: Connection) -> int:
        """`receive_types` for messages from this sender, as long as it has the names it has."""
        found = places(self.general_receives, self.named_receives, sender)
        return open_types([self.receives[i] for i in found], False, False, True)

    def may_own(self, name: bytes) -> bool:
        """Whether the client may own this well-known name, or queue for it."""
        fitting = self.fitting_owns(name)
        if not fitting:
            return self.decide(None)
        allowed = self.decide(fitting[-1])
        if not allowed:
            self.matched = len(fitting)
        return allowed

    def decide(self, rule: MessageRule | OwnRule | None) -> bool:
        """Makes `rule` the one that decided."""
        self.matched = 0
        self.rule = rule
        if rule is None:
            self.log = False
            return False
        self.log = isinstance(rule, MessageRule) and rule.log
        return rule.allow

    # All rules that apply, in order, the deciding one last: to count and to explain.

    def fitting_sends(
        self, msg: Message, receiver: Connection | None, requested_reply: bool
    ) -> list[MessageRule]:
        facts = Facts(msg, requested_reply)
        return [rule for rule in self.sends if rule.fits_send(facts, receiver)]

    def fitting_receives(
        self, msg: Message, sender: Connection | None, eavesdropping: bool, requested_reply: bool
    ) -> list[MessageRule]:
        facts = Facts(msg, requested_reply)
        return [rule for rule in self.receives if rule.fits_receive(facts, sender, eavesdropping)]

    def fitting_owns(self, name: bytes) -> list[OwnRule]:
        return [rule for rule in self.owns if rule.fits(name)]


def make_rule(arguments: dict[str, Any]) -> MessageRule | OwnRule | ConnectRule:
    """The rule that a dict of a spec stands for; KeyError, TypeError if it stands for none."""
    given = dict(arguments)
    kind = given.pop("kind")
    if kind == "message":
        return MessageRule(**given)
    if kind == "own":
        return OwnRule(**given)
    if kind == "connect":
        return ConnectRule(**given)
    raise KeyError(kind)


class PolicySet:
    """All rules of a bus. `unknown_users` and `unknown_groups`: names that rules wait for, see
    `settle_user()`; `asks_groups`, `asks_console`: whether a client's groups, or being at the
    console, make a difference to what `client()` answers."""

    def __init__(self, spec: Spec = ()) -> None:
        self.default: list[MessageRule | OwnRule] = []
        self.mandatory: list[MessageRule | OwnRule] = []
        self.console: list[MessageRule | OwnRule] = []
        self.no_console: list[MessageRule | OwnRule] = []
        self.by_uid: dict[int, list[MessageRule | OwnRule]] = {}
        self.by_gid: dict[int, list[MessageRule | OwnRule]] = {}
        self.connect_default: list[ConnectRule] = []
        self.connect_mandatory: list[ConnectRule] = []
        self.unknown_users: dict[bytes, list[MessageRule | OwnRule]] = {}
        self.unknown_groups: dict[bytes, list[MessageRule | OwnRule]] = {}
        self.rule: ConnectRule | None = None
        self.clients: dict[tuple[int, tuple[int, ...], bool], ClientPolicy] = {}
        for scope, id, name, arguments in spec:
            self.add(scope, id, name, make_rule(arguments))
        self.asks_groups = bool(self.by_gid)
        self.asks_console = bool(self.console or self.no_console)

    def add(
        self, scope: str, id: int, name: bytes, rule: MessageRule | OwnRule | ConnectRule
    ) -> None:
        """Puts a rule where it belongs; KeyError for a scope that has no place for it."""
        if isinstance(rule, ConnectRule):
            places = {"default": self.connect_default, "mandatory": self.connect_mandatory}
            places[scope].append(rule)
            if rule.id == UNKNOWN:
                unknown = self.unknown_groups if rule.group else self.unknown_users
                unknown.setdefault(rule.name, [])
        elif scope == "user":
            if id == UNKNOWN:
                self.unknown_users.setdefault(name, []).append(rule)
            else:
                self.by_uid.setdefault(id, []).append(rule)
        elif scope == "group":
            if id == UNKNOWN:
                self.unknown_groups.setdefault(name, []).append(rule)
            else:
                self.by_gid.setdefault(id, []).append(rule)
        else:
            {
                "default": self.default,
                "mandatory": self.mandatory,
                "console": self.console,
                "no_console": self.no_console,
            }[scope].append(rule)

    def settle_user(self, name: bytes, uid: int) -> None:
        """Now it is known who `name` is: the rules that waited for this begin to hold."""
        waiting = self.unknown_users.pop(name, None)
        if waiting is not None:
            self.settle(name, False, uid)
            self.by_uid.setdefault(uid, []).extend(waiting)

    def settle_group(self, name: bytes, gid: int) -> None:
        """settle_user() for a group."""
        waiting = self.unknown_groups.pop(name, None)
        if waiting is not None:
            self.settle(name, True, gid)
            self.by_gid.setdefault(gid, []).extend(waiting)
            self.asks_groups = True

    def settle(self, name: bytes, group: bool, id: int) -> None:
        for rules in (self.connect_default, self.connect_mandatory):
            for rule in rules:
                if rule.id == UNKNOWN and rule.group == group and rule.name == name:
                    rule.id = id
        self.clients.clear()

    def may_connect(self, uid: int, gids: Sequence[int] | None, bus_uid: int) -> bool:
        """Whether this user may connect; without a rule about it only the bus's own user may.

        `gids` are the groups that the user database gives the user; None, where it does not know
        the user, is a no, as in dbus-daemon. `rule` is the one that decided, None if none did."""
        self.rule = None
        if gids is None:
            return False
        allowed = uid == bus_uid
        for rules in (self.connect_default, self.connect_mandatory):
            for rule in rules:
                if rule.fits(uid, gids):
                    allowed = rule.allow
                    self.rule = rule
        return allowed

    def client(self, uid: int, gids: Sequence[int], at_console: bool) -> ClientPolicy:
        """What holds for clients of this user, in these groups; uid NO_UID for one without.

        Group rules apply in ascending order of gids, as dbus-daemon sorts them. Clients for whom
        the same rules hold share one object, so its `rule`, `matched` and `log` must be read before
        the next decision."""
        key = self.key(uid, gids, at_console)
        policy = self.clients.get(key)
        if policy is None:
            rules: list[MessageRule | OwnRule] = []
            for _scope, _id, some in self.blocks(key):
                rules += some
            policy = ClientPolicy(rules)
            policy.key = key
            self.clients[key] = policy
        return policy

    def key(
        self, uid: int, gids: Sequence[int], at_console: bool
    ) -> tuple[int, tuple[int, ...], bool]:
        """What of a client makes a difference to the rules that hold for it."""
        groups = tuple([gid for gid in sorted(set(gids)) if gid in self.by_gid])
        # All users without rules of their own are one and the same here; NO_UID has no console.
        who = uid if uid in self.by_uid or uid == NO_UID else UNKNOWN
        return who, groups, at_console and uid != NO_UID

    def blocks(
        self, key: tuple[int, tuple[int, ...], bool]
    ) -> list[tuple[str, int, list[MessageRule | OwnRule]]]:
        """The rules that hold for clients of this `key()`, by scope and id, in the order in which
        they apply. Nothing is copied: the lists are the set's own."""
        uid, groups, console = key
        found = [("default", ANYBODY, self.default)]
        for gid in groups:
            found.append(("group", gid, self.by_gid[gid]))
        if uid != NO_UID:
            found.append(("user", uid, self.by_uid.get(uid, [])))
            if console:
                found.append(("console", ANYBODY, self.console))
            else:
                found.append(("no_console", ANYBODY, self.no_console))
        found.append(("mandatory", ANYBODY, self.mandatory))
        return found
