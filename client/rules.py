"""Rules: which broadcasts and notifications a connection wants, and who may do what with a name.

Invariant: each object is one item of MATCH_ADD (kdbus.match(7)) or one entry of a policy
(kdbus.policy(7)). All rules of one `add_match()` must fit; of several matches one is enough.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jitney.broker.kdbus import constants as c

from . import items

ANY = c.MATCH_ANY


@dataclass(frozen=True, slots=True)
class BloomMask:
    """Signals whose filter has all these bits. `masks`: one for each generation of filters, each of
    the bus's bloom size; the last one is for all later generations."""

    masks: tuple[bytes, ...]

    def pack(self) -> bytes:
        return items.pack(c.ITEM_BLOOM_MASK, b"".join(self.masks))


@dataclass(frozen=True, slots=True)
class FromName:
    """What comes from the owner of this name."""

    name: str

    def pack(self) -> bytes:
        return items.text(c.ITEM_NAME, self.name.encode())


@dataclass(frozen=True, slots=True)
class FromId:
    """What comes from this connection."""

    id: int

    def pack(self) -> bytes:
        return items.pack(c.ITEM_ID, struct.pack("<Q", self.id))


@dataclass(frozen=True, slots=True)
class ToId:
    """What goes to this connection."""

    id: int

    def pack(self) -> bytes:
        return items.pack(c.ITEM_DST_ID, struct.pack("<Q", self.id))


@dataclass(frozen=True, slots=True)
class OnIdAdded:
    """Notifications of connections that come."""

    id: int = ANY

    def pack(self) -> bytes:
        return items.pack(c.ITEM_ID_ADD, struct.pack("<2Q", self.id, 0))


@dataclass(frozen=True, slots=True)
class OnIdRemoved:
    """Notifications of connections that go."""

    id: int = ANY

    def pack(self) -> bytes:
        return items.pack(c.ITEM_ID_REMOVE, struct.pack("<2Q", self.id, 0))


@dataclass(frozen=True, slots=True)
class OnName:
    """Notifications of one kind (`NameAdded`, `NameRemoved` or `NameChanged`) about a name, None
    for any. For several kinds there have to be several matches."""

    kind: type[items.NameChanged]
    name: str | None = None
    old_id: int = ANY
    new_id: int = ANY

    def pack(self) -> bytes:
        data = struct.pack("<4Q", self.old_id, 0, self.new_id, 0)
        if self.name is not None:
            data += self.name.encode() + b"\0"
        return items.pack(self.kind.KIND, data)


Rule = BloomMask | FromName | FromId | ToId | OnIdAdded | OnIdRemoved | OnName


class Whom(enum.IntEnum):
    """Who is given a right."""

    USER = c.FOR_USER
    GROUP = c.FOR_GROUP
    WORLD = c.FOR_WORLD


class Right(enum.IntEnum):
    """What; each contains those before it."""

    SEE = c.SEE
    TALK = c.TALK
    OWN = c.OWN


@dataclass(frozen=True, slots=True)
class Access:
    """One right to a name. `number`: the uid or gid, of no meaning for the world."""

    right: Right
    whom: Whom = Whom.WORLD
    number: int = 0

    def pack(self) -> bytes:
        data = struct.pack("<3Q", self.whom, self.right, self.number)
        return items.pack(c.ITEM_POLICY_ACCESS, data)


Policy = Sequence[tuple[str, Iterable[Access]]]
"""Names (also "org.example.*"), each with the rights to it."""


def pack_policy(policy: Policy) -> bytes:
    out = b""
    for name, rights in policy:
        out += items.text(c.ITEM_NAME, name.encode())
        for access in rights:
            out += access.pack()
    return out
