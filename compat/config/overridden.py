"""Overridden: rules that can never decide anything, because a later one always does.

Invariant: what is found here is certain, for every message, name and user. Rules of two files of
one directory are never held against each other (the order of such files is nobody's promise), nor
are policies for different users or groups; `<policy context="mandatory">` comes after all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jitney.broker.policy import make_rule
from jitney.broker.policy_rules import (
    ANYBODY,
    EITHER,
    UNKNOWN,
    ConnectRule,
    MessageRule,
    OwnRule,
    below,
)

from .plain import SpecEntry


class Overridden(NamedTuple):
    """`rule` never decides, because of `by`. `wiped`: `by` is a blanket rule, which makes earlier
    ones go away even where it does not fit itself. `but_replies`: it decides about replies, which
    allows and denies are asked about in different ways, and about nothing else."""

    rule: Any
    by: Any
    wiped: bool = False
    but_replies: bool = False


class _Entry(NamedTuple):
    place: int
    scope: tuple[str, int, bytes]
    rule: Any


def find(spec: Iterable[SpecEntry]) -> Iterator[Overridden]:
    """All such rules of a policy, in order; each with the first rule that overrides it."""
    entries = []
    for place, (scope, id, name, arguments) in enumerate(spec):
        who = name if id == UNKNOWN else b""
        entries.append(_Entry(place, (scope, id, who), make_rule(arguments)))
    index: dict[Any, list[_Entry]] = {}
    for entry in entries:
        index.setdefault(_key(entry.rule), []).append(entry)
    for entry in entries:
        found = _by(entry, index, _overrides)
        if found is not None:
            by = found.rule
            wiped = isinstance(by, MessageRule) and by.blanket and not covers(by, entry.rule)
            yield Overridden(entry.rule, by, wiped)
        elif isinstance(entry.rule, MessageRule) and entry.rule.type in _NO_REPLIES:
            found = _by(entry, index, _covers_but_replies)
            if found is not None:
                yield Overridden(entry.rule, found.rule, but_replies=True)


def _by(
    entry: _Entry, index: dict[Any, list[_Entry]], overrides: Callable[[Any, Any], bool]
) -> _Entry | None:
    best = None
    for key in _keys(entry.rule):
        for later in index.get(key, ()):
            if best is not None and later.place >= best.place:
                break
            if _comes_later(entry, later) and overrides(later.rule, entry.rule):
                best = later
                break
    return best


def _comes_later(entry: _Entry, later: _Entry) -> bool:
    if later.scope == entry.scope:
        return later.place > entry.place and later.rule.file == entry.rule.file
    return later.scope[0] == "mandatory" and entry.scope[0] != "mandatory"


def _overrides(later: Any, rule: Any) -> bool:
    if isinstance(later, MessageRule) and later.blanket:
        return True  # of the same direction, see _key()
    return covers(later, rule)


# Rules are looked up by what they name, since most name somebody of their own.


def _key(rule: Any) -> Any:
    if isinstance(rule, MessageRule):
        peer = rule.peer if rule.prefix is None else _PREFIX
        return "message", rule.send, peer, rule.interface, rule.member
    if isinstance(rule, OwnRule):
        return "own", rule.prefix, None if rule.prefix else rule.name
    return "connect", rule.group, rule.id, rule.name if rule.id == UNKNOWN else b""


_PREFIX = b"*"

# Rules for any type, for calls and for signals: who writes these does not think of replies.
_NO_REPLIES = (0, 1, 4)


def _keys(rule: Any) -> list[Any]:
    """The keys of all rules that can cover this one."""
    if isinstance(rule, MessageRule):
        return [
            ("message", rule.send, peer, interface, member)
            for peer in {rule.peer, None, _PREFIX}
            for interface in {rule.interface, None}
            for member in {rule.member, None}
        ]
    if isinstance(rule, OwnRule):
        return [("own", False, rule.name), ("own", False, None), ("own", True, None)]
    mine = _key(rule)
    return [mine, ("connect", False, ANYBODY, b""), ("connect", True, ANYBODY, b"")]


def covers(later: Any, rule: Any) -> bool:
    """Whether `later`, of the same kind and direction, fits whatever `rule` fits."""
    if isinstance(rule, MessageRule):
        return _covers_message(later, rule)
    if isinstance(rule, OwnRule):
        return _covers_own(later, rule)
    return _covers_connect(later, rule)


def _covers_message(later: MessageRule, rule: MessageRule) -> bool:
    return _covers_but_replies(later, rule) and all(
        _fits_reply(later, yes) for yes in (False, True) if _fits_reply(rule, yes)
    )


def _covers_but_replies(later: MessageRule, rule: MessageRule) -> bool:
    """Whether `later` fits all that `rule` fits and that is no reply."""
    if later.type not in (0, rule.type):
        return False
    for name in ("path", "interface", "member", "error"):
        wanted = getattr(later, name)
        if wanted is not None and wanted != getattr(rule, name):
            return False
    if later.interface is not None and later.allow and not rule.allow:
        return False  # the deny is about messages without an interface, too
    if later.broadcast not in (EITHER, rule.broadcast):
        return False
    if later.min_fds > rule.min_fds or later.max_fds < rule.max_fds:
        return False
    return _covers_peer(later, rule) and (
        rule.send
        or all(
            _fits_eavesdropping(later, yes)
            for yes in (False, True)
            if _fits_eavesdropping(rule, yes)
        )
    )


def _covers_peer(later: MessageRule, rule: MessageRule) -> bool:
    if later.peer is not None:
        return rule.peer == later.peer
    if later.prefix is None:
        return True
    name = rule.peer if rule.prefix is None else rule.prefix
    return name is not None and below(name, later.prefix)


def _fits_reply(rule: MessageRule, requested: bool) -> bool:
    if rule.allow:
        return requested or not rule.requested_reply or rule.eavesdrop
    return not requested or rule.requested_reply


def _fits_eavesdropping(rule: MessageRule, eavesdropping: bool) -> bool:
    if rule.allow:
        return not eavesdropping or rule.eavesdrop
    return eavesdropping or not rule.eavesdrop


def _covers_own(later: OwnRule, rule: OwnRule) -> bool:
    if later.name is None:
        return True
    if rule.name is None:
        return False
    if later.prefix:
        return below(rule.name, later.name)
    return not rule.prefix and rule.name == later.name


def _covers_connect(later: ConnectRule, rule: ConnectRule) -> bool:
    if later.id == ANYBODY:
        return True
    return (later.group, later.id, later.name if later.id == UNKNOWN else b"") == (
        rule.group, rule.id, rule.name if rule.id == UNKNOWN else b"",
    )  # fmt: skip
