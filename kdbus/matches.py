"""Match rules of classic D-Bus as matches of kdbus, and back.

Invariant: a message or notification that a rule wants passes one of the rule's matches (tests hold
it against the core's matcher). More may pass, so whoever installs them asks `Rule.matches()` again
when something arrives. What a rule cannot want of a bus without eavesdropping gets no match at all.

A match is a list of items, all of which must hold; a rule becomes several under one cookie. Those
for messages of peers are about the sender's id or name and the bits of its bloom filter (`bloom`);
those for what the bus says are about one kind of notification each, as a NameOwnerChanged may
be any of five. Facts from systemd v226 (`bus-control.c`) and kdbus (`match.c`, `connection.c`).

- A match without items would hold for notifications, too: where nothing is asked, it is ID "any".
- From an activator to a service is NAME_CHANGE there and a new name here, so that one is needed
  whatever the rule says of owners.
- On kdbus a signal to one connection needs a match as well, and NameAcquired and NameLost are no
  messages: `always()` is what makes up for both.
- A path in argNpath may be longer or shorter than the argument, which bits cannot say.
- kdbus has ids for destinations, no names, and what is for others cannot be had.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from struct import pack

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
)
from jitney.broker.match import Rule
from jitney.broker.message import SIGNAL
from jitney.broker.syntax import is_bus_name

from . import bloom
from .gvariant import Malformed
from .transcode import DRIVER, DST_ID_BROADCAST, id_of, unique_name
from .translate import (
    DRIVER_PATH,
    ID_CHANGES,
    NAME_CHANGES,
    Item,
    id_change,
    name_change,
)

ANY = (1 << 64) - 1

_ORDER = sys.byteorder
_OWNER_CHANGED = b"NameOwnerChanged"
Match = list[Item]


# ---- from rules


def of_rule(rule: Rule, size: int = bloom.SIZE, n_hash: int = bloom.N_HASH) -> list[Match]:
    """The matches that let through what the rule wants, for a bus with these bloom parameters."""
    # All that is broadcast are signals; with a destination a rule is about what is for others.
    if rule.type not in (0, SIGNAL) or rule.destination is not None:
        return []
    return _of_peers(rule, size, n_hash) + _of_names(rule)


def always(own_id: int) -> list[Match]:
    """What a classic connection hears without any rule: signals for it, and its own names."""
    return [
        [Item(ITEM_DST_ID, pack("=Q", own_id))],
        [_name_item(ITEM_NAME_ADD, new_id=own_id)],
        [_name_item(ITEM_NAME_REMOVE, old_id=own_id)],
        [_name_item(ITEM_NAME_CHANGE, new_id=own_id)],
        [_name_item(ITEM_NAME_CHANGE, old_id=own_id)],
    ]


def _of_peers(rule: Rule, size: int, n_hash: int) -> list[Match]:
    items = []
    if rule.sender == DRIVER:
        return []
    if rule.sender is None:
        items.append(Item(ITEM_ID, pack("=Q", ANY)))
    elif rule.sender[:1] == b":":
        number = id_of(rule.sender)
        if number is None:
            return []
        items.append(Item(ITEM_ID, pack("=Q", number)))
    else:
        items.append(Item(ITEM_NAME, rule.sender + b"\0"))
    mask = bloom.mask_of(rule, size, n_hash)
    if mask is not None:
        items.append(Item(ITEM_BLOOM_MASK, mask))
    return [items]


def _of_names(rule: Rule) -> list[Match]:
    """Matches for the notifications that NameOwnerChanged is made of, if the rule may want it."""
    if (
        rule.sender not in (None, DRIVER)
        or rule.interface not in (None, DRIVER)
        or rule.member not in (None, _OWNER_CHANGED)
        or rule.path not in (None, DRIVER_PATH)
        or not _covers(rule.path_namespace)
        or any(arg.index > 2 for arg in rule.args)
    ):
        return []
    args: list[bytes | None] = [None, None, None]
    namespace = None
    for arg in rule.args:
        if arg.kind == ord("n"):
            namespace = arg.text
        else:
            # There is no slash in names, so argNpath wants the same as argN.
            args[arg.index] = arg.text
    name, old, new = args
    if old == new == b"" or not (_may_own(old) and _may_own(new)):
        return []
    return _of_ids(name, namespace, old, new) + _of_well_known(name, namespace, old, new)


def _covers(namespace: bytes | None) -> bool:
    if namespace is None or namespace == b"/":
        return True
    return namespace == DRIVER_PATH or DRIVER_PATH.startswith(namespace + b"/")


def _may_own(owner: bytes | None) -> bool:
    return owner is None or owner == b"" or id_of(owner) is not None


def _of_ids(
    name: bytes | None, namespace: bytes | None, old: bytes | None, new: bytes | None
) -> list[Match]:
    # A unique name's only owner is itself.
    names = {text for text in (name, old, new) if text}
    if name == b"" or len(names) > 1 or (namespace is not None and namespace[:1] != b":"):
        return []
    number = ANY
    if names:
        known = id_of(names.pop())
        if known is None:
            return []
        number = known
    data = pack("=QQ", number, 0)
    matches = []
    if not old and new != b"":
        matches.append([Item(ITEM_ID_ADD, data)])
    if not new and old != b"":
        matches.append([Item(ITEM_ID_REMOVE, data)])
    return matches


def _of_well_known(
    name: bytes | None, namespace: bytes | None, old: bytes | None, new: bytes | None
) -> list[Match]:
    if name is not None and (name[:1] == b":" or not is_bus_name(name)):
        return []
    if namespace is not None and namespace[:1] == b":":
        return []
    old_id = (id_of(old) if old else None) or ANY
    new_id = (id_of(new) if new else None) or ANY
    matches = [[_name_item(ITEM_NAME_CHANGE, name, old_id, new_id)]]
    if not old and new != b"":
        matches.append([_name_item(ITEM_NAME_ADD, name, ANY, new_id)])
    if not new and old != b"":
        matches.append([_name_item(ITEM_NAME_REMOVE, name, old_id, ANY)])
    return matches


def _name_item(kind: int, name: bytes | None = None, old_id: int = ANY, new_id: int = ANY) -> Item:
    text = b"" if name is None else name + b"\0"
    return Item(kind, pack("=4Q", old_id, 0, new_id, 0) + text)


# ---- to rules


def rule_of(match: Sequence[Item]) -> Rule | None:
    """A classic rule that wants all that the match lets through; None if nothing can pass it.

    It says in words what the bus is asked for. Bits do not tell of what they were made, so of a
    bloom mask there is nothing in it. Malformed if an item is not what it claims to be."""
    kinds = {item.type for item in match}
    told = kinds & {*NAME_CHANGES, *ID_CHANGES}
    if told:
        return _rule_of_names(match) if kinds == told and len(kinds) == 1 else None
    ids = {number for item in match if item.type == ITEM_ID and (number := _id(item)) != ANY}
    names = [item.data for item in match if item.type == ITEM_NAME]
    if len(ids) > 1:
        return None
    sender = None
    if ids:
        sender = unique_name(ids.pop())
    elif names:
        sender = names[0].removesuffix(b"\0")
    return Rule(type=SIGNAL, sender=sender)


def _rule_of_names(match: Sequence[Item]) -> Rule | None:
    args: dict[int, bytes] = {}
    for item in match:
        if item.type in ID_CHANGES:
            number = id_change(item.data)
            added = item.type == ITEM_ID_ADD
            wanted = {1: b""} if added else {2: b""}
            if number != ANY:
                wanted |= {0: unique_name(number), 2 if added else 1: unique_name(number)}
        else:
            wanted = _name_args(item)
        for index, text in wanted.items():
            if args.setdefault(index, text) != text:
                return None
    return Rule(
        type=SIGNAL,
        sender=DRIVER,
        interface=DRIVER,
        member=_OWNER_CHANGED,
        path=DRIVER_PATH,
        args={index: ("s", text) for index, text in args.items()},
    )


def _name_args(item: Item) -> dict[int, bytes]:
    name, old_id, new_id = _name_parts(item)
    wanted = {} if name is None else {0: name}
    if item.type == ITEM_NAME_ADD:
        wanted[1] = b""
    if item.type == ITEM_NAME_REMOVE:
        wanted[2] = b""
    # In a NAME_CHANGE an id may be an activator's, who is nobody in NameOwnerChanged.
    if item.type == ITEM_NAME_REMOVE and old_id != ANY:
        wanted[1] = unique_name(old_id)
    if item.type == ITEM_NAME_ADD and new_id != ANY:
        wanted[2] = unique_name(new_id)
    return wanted


def _name_parts(item: Item) -> tuple[bytes | None, int, int]:
    if len(item.data) == 32:
        return None, int.from_bytes(item.data[:8], _ORDER), int.from_bytes(item.data[16:24], _ORDER)
    change = name_change(item.data)
    return change.name, change.old_id, change.new_id


def _id(item: Item) -> int:
    if len(item.data) != 8:
        raise Malformed("not an id")
    return int.from_bytes(item.data, _ORDER)


# ---- what the bus does with them


def lets_message(
    match: Sequence[Item],
    src_id: int,
    names: Collection[bytes],
    bits: bytes,
    dst_id: int = DST_ID_BROADCAST,
    generation: int = 0,
) -> bool:
    """Whether a signal of a peer, who owns these names, passes; `bits` is its bloom filter."""
    for item in match:
        if item.type == ITEM_ID:
            holds = _id(item) in (src_id, ANY)
        elif item.type == ITEM_DST_ID:
            holds = _id(item) in (dst_id, ANY)
        elif item.type == ITEM_NAME:
            holds = item.data.removesuffix(b"\0") in names
        elif item.type == ITEM_BLOOM_MASK:
            holds = bloom.passes(item.data, bits, generation)
        else:
            holds = False
        if not holds:
            return False
    return True


def lets_notification(match: Sequence[Item], told: Item) -> bool:
    """Whether what the bus says passes."""
    for item in match:
        if item.type != told.type:
            return False
        if item.type in ID_CHANGES:
            if id_change(item.data) not in (id_change(told.data), ANY):
                return False
        elif item.type in NAME_CHANGES:
            name, old_id, new_id = _name_parts(item)
            change = name_change(told.data)
            if (
                old_id not in (change.old_id, ANY)
                or new_id not in (change.new_id, ANY)
                or name not in (None, change.name)
            ):
                return False
        else:
            return False
    return True
