"""Items: what a message, a connection's info or a notification says, as dataclasses.

Invariant: `item_of()` of what an object's `data()` gives is equal to it. Ids of users and processes
are in the reader's namespaces; what the bus could not tell is missing (kdbus.item(7)). Times are
nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

from jitney.broker.kdbus import constants as c

from .frames import FormatError

HEAD = struct.Struct("<2Q")


def pack(kind: int, data: bytes) -> bytes:
    """An item and its padding."""
    size = HEAD.size + len(data)
    return HEAD.pack(size, kind) + data + bytes(-size & 7)


def text(kind: int, value: bytes) -> bytes:
    return pack(kind, value + b"\0")


def walk(data: bytes | memoryview, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """(type, where the payload begins, its size) of each item from `start` on; FormatError."""
    at, end = start, len(data)
    while at < end:
        if end - at < HEAD.size:
            raise FormatError("an item without a head")
        size, kind = HEAD.unpack_from(data, at)
        if size < HEAD.size or size > end - at:
            raise FormatError("an item that is longer than what it is in")
        yield kind, at + HEAD.size, size - HEAD.size
        at += size + 7 & ~7


@dataclass(frozen=True, slots=True)
class Numbers:
    """An item that is a row of numbers; the order of the fields is theirs."""

    KIND: ClassVar[int]
    FORM: ClassVar[struct.Struct]

    def data(self) -> bytes:
        return self.FORM.pack(*(getattr(self, entry.name) for entry in fields(self)))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) != cls.FORM.size:
            raise FormatError(f"{cls.__name__} of {len(data)} bytes")
        return cls(*cls.FORM.unpack(data))


@dataclass(frozen=True, slots=True)
class Creds(Numbers):
    """Users and groups of a process: real, effective, saved, and of the file system."""

    KIND = c.ITEM_CREDS
    FORM = struct.Struct("<8Q")
    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int


@dataclass(frozen=True, slots=True)
class Pids(Numbers):
    """Process, thread and parent; 0 for one that the reader cannot see."""

    KIND = c.ITEM_PIDS
    FORM = struct.Struct("<3Q")
    pid: int
    tid: int
    ppid: int


@dataclass(frozen=True, slots=True)
class Timestamp(Numbers):
    """The message's number on its bus, and when the bus took it (CLOCK_MONOTONIC, REALTIME)."""

    KIND = c.ITEM_TIMESTAMP
    FORM = struct.Struct("<3Q")
    number: int
    monotonic: int
    realtime: int


@dataclass(frozen=True, slots=True)
class Caps(Numbers):
    """Capabilities as bit sets, up to number `last`."""

    KIND = c.ITEM_CAPS
    FORM = struct.Struct("<I4Q")
    last: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int


@dataclass(frozen=True, slots=True)
class Audit(Numbers):
    KIND = c.ITEM_AUDIT
    FORM = struct.Struct("<2I")
    session: int
    login_uid: int


@dataclass(frozen=True, slots=True)
class OwnedName:
    """A name that a connection has or waits for; `flags`: `Name`."""

    KIND: ClassVar[int] = c.ITEM_OWNED_NAME
    flags: int
    name: str

    def data(self) -> bytes:
        return struct.pack("<Q", self.flags) + self.name.encode() + b"\0"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 9:
            raise FormatError("an owned name without a name")
        return cls(struct.unpack_from("<Q", data)[0], _text(data[8:]))


def _text(data: bytes) -> str:
    """A text before its zero byte. What is not UTF-8 comes as surrogates (see os.fsencode)."""
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


@dataclass(slots=True)
class Metadata:
    """What a receiver is told about a sender, or CONN_INFO about a connection. None: not told."""

    creds: Creds | None = None
    pids: Pids | None = None
    timestamp: Timestamp | None = None
    groups: tuple[int, ...] | None = None
    names: list[OwnedName] = field(default_factory=list)
    tid_comm: str | None = None
    pid_comm: str | None = None
    exe: str | None = None
    command_line: tuple[str, ...] | None = None
    cgroup: str | None = None
    caps: Caps | None = None
    security_label: str | None = None
    audit: Audit | None = None
    description: str | None = None
    bus_name: str | None = None

    def add(self, kind: int, data: bytes) -> None:
        """Takes an item up; those that are no metadata are left alone."""
        numbers = _NUMBERS.get(kind)
        if numbers is not None:
            setattr(self, numbers[0], numbers[1].parse(data))
        elif kind == c.ITEM_OWNED_NAME:
            self.names.append(OwnedName.parse(data))
        elif kind == c.ITEM_AUXGROUPS:
            if len(data) % 8:
                raise FormatError("groups that are no numbers")
            self.groups = struct.unpack(f"<{len(data) // 8}Q", data)
        elif kind == c.ITEM_CMDLINE:
            words = data[:-1].decode("utf-8", "surrogateescape")
            self.command_line = tuple(words.split("\0"))
        elif kind in _TEXTS:
            setattr(self, _TEXTS[kind], _text(data))

    def data(self) -> bytes:
        """All of it as items, as a bus would write it."""
        out = b""
        for kind, (name, _) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                out += pack(kind, value.data())
        for owned in self.names:
            out += pack(owned.KIND, owned.data())
        if self.groups is not None:
            out += pack(c.ITEM_AUXGROUPS, struct.pack(f"<{len(self.groups)}Q", *self.groups))
        if self.command_line is not None:
            words = "\0".join(self.command_line).encode("utf-8", "surrogateescape")
            out += text(c.ITEM_CMDLINE, words)
        for kind, name in _TEXTS.items():
            value = getattr(self, name)
            if value is not None:
                out += text(kind, value.encode("utf-8", "surrogateescape"))
        return out


_NUMBERS: dict[int, tuple[str, type[Numbers]]] = {
    c.ITEM_TIMESTAMP: ("timestamp", Timestamp),
    c.ITEM_CREDS: ("creds", Creds),
    c.ITEM_PIDS: ("pids", Pids),
    c.ITEM_CAPS: ("caps", Caps),
    c.ITEM_AUDIT: ("audit", Audit),
}
_TEXTS = {
    c.ITEM_TID_COMM: "tid_comm",
    c.ITEM_PID_COMM: "pid_comm",
    c.ITEM_EXE: "exe",
    c.ITEM_CGROUP: "cgroup",
    c.ITEM_SECLABEL: "security_label",
    c.ITEM_DESCRIPTION: "description",
    c.ITEM_MAKE_NAME: "bus_name",
}


# What the bus itself has to say


@dataclass(frozen=True, slots=True)
class IdAdded(Numbers):
    """A connection has come; `flags` are those of its HELLO."""

    KIND = c.ITEM_ID_ADD
    FORM = struct.Struct("<2Q")
    id: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class IdRemoved(IdAdded):
    """A connection has gone."""

    KIND = c.ITEM_ID_REMOVE


@dataclass(frozen=True, slots=True)
class NameChanged:
    """A name went from one connection to another; flags: `Name`."""

    KIND: ClassVar[int] = c.ITEM_NAME_CHANGE
    name: str
    old_id: int
    old_flags: int
    new_id: int
    new_flags: int

    def data(self) -> bytes:
        numbers = struct.pack("<4Q", self.old_id, self.old_flags, self.new_id, self.new_flags)
        return numbers + self.name.encode() + b"\0"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 33:
            raise FormatError("a change of a name without a name")
        return cls(_text(data[32:]), *struct.unpack_from("<4Q", data))


@dataclass(frozen=True, slots=True)
class NameAdded(NameChanged):
    """A name that nobody had has an owner."""

    KIND = c.ITEM_NAME_ADD


@dataclass(frozen=True, slots=True)
class NameRemoved(NameChanged):
    """A name has no owner any more."""

    KIND = c.ITEM_NAME_REMOVE


@dataclass(frozen=True, slots=True)
class ReplyTimedOut(Numbers):
    """A call of ours was not answered in time; its cookie is the notification's `reply_to`."""

    KIND = c.ITEM_REPLY_TIMEOUT
    FORM = struct.Struct("<")


@dataclass(frozen=True, slots=True)
class ReplyDead(Numbers):
    """Who was to answer has gone; the call's cookie is the notification's `reply_to`."""

    KIND = c.ITEM_REPLY_DEAD
    FORM = struct.Struct("<")


Notification = (
    IdAdded | IdRemoved | NameChanged | NameAdded | NameRemoved | ReplyTimedOut | ReplyDead
)
_NOTIFICATIONS: dict[int, type[Notification]] = {
    kind.KIND: kind
    for kind in (
        IdAdded, IdRemoved, NameChanged, NameAdded, NameRemoved, ReplyTimedOut, ReplyDead,
    )
}  # fmt: skip


def notification_of(kind: int, data: bytes) -> Notification | None:
    """What an item says, if it is one of those; FormatError."""
    found = _NOTIFICATIONS.get(kind)
    return found.parse(data) if found is not None else None


def metadata_of(data: bytes | memoryview, start: int = 0) -> Metadata:
    """All metadata among the items from `start` on."""
    found = Metadata()
    for kind, at, size in walk(data, start):
        found.add(kind, bytes(data[at : at + size]))
    return found
