"""What the bus itself says, in kdbus's words and in those of a classic bus.

Invariant: a change of names or a lost reply is told once, as a kdbus item; whatever a classic
client hears of it is made of that item here, and the other way round nothing is lost but the flags
that classic D-Bus has no words for.

kdbus tells its clients with small messages of its own, each with one item; sd-bus makes the
signals and errors of dbus-daemon of them when it receives them. Facts from systemd v226
(`bus-kernel.c`, and `synthesize.c`, `proxy.c`, `driver.c` of bus-proxyd) and from kdbus.h.

- An activator, or a connection in the queue, is no owner: a name that goes from an activator to a
  service is new, and one that goes back is gone. From one activator to another is no news.
- NameLost and NameAcquired are for classic clients alone; they are made of the same item.
- Lost replies come with dbus-daemon's texts, as all that we say to classic clients. (sd-bus
  says "Method call timed out" and "Method call peer died" to its own program.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from struct import error as struct_error
from typing import Any, NamedTuple

from jitney.broker.kdbus.constants import (
    ITEM_AUXGROUPS,
    ITEM_CREDS,
    ITEM_ID_ADD,
    ITEM_ID_REMOVE,
    ITEM_NAME_ADD,
    ITEM_NAME_CHANGE,
    ITEM_NAME_REMOVE,
    ITEM_PIDS,
    ITEM_REPLY_DEAD,
    ITEM_REPLY_TIMEOUT,
    ITEM_SECLABEL,
    NAME_ACTIVATOR,
    NAME_IN_QUEUE,
)
from jitney.broker.syntax import is_bus_name
from jitney.compat import wire
from jitney.compat.errors import NO_REPLY

from .gvariant import Malformed
from .transcode import DRIVER, id_of, unique_name

DRIVER_PATH = b"/org/freedesktop/DBus"

NAME_CHANGES = (ITEM_NAME_ADD, ITEM_NAME_REMOVE, ITEM_NAME_CHANGE)
ID_CHANGES = (ITEM_ID_ADD, ITEM_ID_REMOVE)

_NOBODY = NAME_IN_QUEUE | NAME_ACTIVATOR
_ID_CHANGE = Struct("=QQ")
_NAME_CHANGE = Struct("=QQQQ")
_CREDS = Struct("=8Q")
_PIDS = Struct("=3Q")
_UNKNOWN = 0xFFFFFFFF
_TEXTS = {
    ITEM_REPLY_TIMEOUT: "Message did not receive a reply (timeout by message bus)",
    ITEM_REPLY_DEAD: "Message recipient disconnected from message bus without replying",
}


class Item(NamedTuple):
    """One kdbus item without its header: size and padding are for whoever lays it out."""

    type: int
    data: bytes = b""


class NameChange(NamedTuple):
    """The data of a NAME_ADD, NAME_REMOVE or NAME_CHANGE item."""

    name: bytes
    old_id: int
    new_id: int
    old_flags: int = 0
    new_flags: int = 0

    def data(self) -> bytes:
        head = _NAME_CHANGE.pack(self.old_id, self.old_flags, self.new_id, self.new_flags)
        return head + self.name + b"\0"


class Signal(NamedTuple):
    """A signal of the bus; `destination` is None if it is for all."""

    member: bytes
    args: tuple[bytes, ...]
    destination: bytes | None = None

    def message(self, serial: int) -> bytes:
        """The signal in D-Bus 1."""
        return wire.message(
            wire.SIGNAL,
            serial,
            flags=wire.NO_REPLY,
            path=DRIVER_PATH,
            interface=DRIVER,
            member=self.member,
            destination=self.destination,
            signature="s" * len(self.args),
            body=wire.marshal("s" * len(self.args), self.args),
        )


# ---- names


def name_change(data: bytes) -> NameChange:
    """Malformed if this is not the data of such an item."""
    name = data[_NAME_CHANGE.size : -1]
    if data[-1:] != b"\0" or name[:1] == b":" or not is_bus_name(name):
        raise Malformed("not a change of a name")
    old_id, old_flags, new_id, new_flags = _NAME_CHANGE.unpack_from(data)
    return NameChange(name, old_id, new_id, old_flags, new_flags)


def id_change(data: bytes) -> int:
    """The id that came or went. Malformed if this is not the data of such an item."""
    if len(data) != _ID_CHANGE.size:
        raise Malformed("not a change of an id")
    number: int = _ID_CHANGE.unpack(data)[0]
    return number


def owner_change(item: Item) -> tuple[bytes, bytes, bytes] | None:
    """Name, old and new owner (b"" is nobody) for NameOwnerChanged; None if it is no news."""
    if item.type in ID_CHANGES:
        name = unique_name(id_change(item.data))
        return (name, b"", name) if item.type == ITEM_ID_ADD else (name, name, b"")
    if item.type not in NAME_CHANGES:
        return None
    change = name_change(item.data)
    old = new = b""
    if item.type != ITEM_NAME_ADD and not change.old_flags & _NOBODY:
        old = unique_name(change.old_id)
    if item.type != ITEM_NAME_REMOVE and not change.new_flags & _NOBODY:
        new = unique_name(change.new_id)
    return (change.name, old, new) if old or new else None


def signals_of(item: Item, own_id: int) -> list[Signal]:
    """What a classic connection of that id is to hear, in dbus-daemon's order.

    The broadcast among them is for those who have a rule for it."""
    change = owner_change(item)
    if change is None:
        return []
    name, old, new = change
    own = unique_name(own_id)
    signals = [Signal(b"NameOwnerChanged", change)]
    if old == own:
        signals.insert(0, Signal(b"NameLost", (name,), own))
    if new == own:
        signals.append(Signal(b"NameAcquired", (name,), own))
    return signals


def item_of(name: bytes, old: bytes, new: bytes) -> Item:
    """The kdbus item for a NameOwnerChanged with these arguments.

    Malformed if these are no names of this bus, or nothing changed."""
    before = id_of(old) if old else 0
    after = id_of(new) if new else 0
    if before is None or after is None or before == after:
        raise Malformed("owners that are no ids, or the same")
    number = id_of(name)
    if number is not None:
        if {before, after} != {0, number}:
            raise Malformed("a unique name with another owner than itself")
        return Item(ITEM_ID_ADD if after else ITEM_ID_REMOVE, _ID_CHANGE.pack(number, 0))
    if name[:1] == b":" or not is_bus_name(name):
        raise Malformed("not a name")
    kind = ITEM_NAME_CHANGE if before and after else ITEM_NAME_ADD if after else ITEM_NAME_REMOVE
    return Item(kind, NameChange(name, before, after).data())


# ---- replies that will not come


def no_reply(item: Item, serial: int, reply_serial: int, destination: bytes) -> bytes:
    """The error in D-Bus 1 that ends the wait for a reply. Malformed if the item says no such."""
    text = _TEXTS.get(item.type)
    if text is None:
        raise Malformed("not about a reply")
    return wire.message(
        wire.ERROR,
        serial,
        flags=wire.NO_REPLY,
        error_name=NO_REPLY.encode(),
        reply_serial=reply_serial,
        destination=destination,
        signature="s",
        body=wire.marshal("s", [text]),
    )


# ---- credentials


def credentials(items: Iterable[Item]) -> dict[str, tuple[str, Any]]:
    """What GetConnectionCredentials tells of a connection with these items of metadata.

    Not known, and so not told, is what is 0 among process ids and 0xFFFFFFFF among users:
    namespaces hide some, and who speaks for another knows less. Malformed if an item is too short.
    """
    known: dict[str, tuple[str, Any]] = {}
    gid = None
    groups: set[int] | None = None
    try:
        for item in items:
            if item.type == ITEM_PIDS:
                pid = _PIDS.unpack_from(item.data)[0]
                if 0 < pid < _UNKNOWN:
                    known["ProcessID"] = ("u", pid)
            elif item.type == ITEM_CREDS:
                uid, euid, _, _, real_gid, egid, _, _ = _CREDS.unpack_from(item.data)
                user = _known(euid, uid)
                if user is not None:
                    known["UnixUserID"] = ("u", user)
                gid = _known(egid, real_gid)
            elif item.type == ITEM_AUXGROUPS:
                numbers = Struct(f"={len(item.data) // 8}Q").unpack(item.data)
                groups = {number for number in numbers if number < _UNKNOWN}
            elif item.type == ITEM_SECLABEL:
                label = item.data.partition(b"\0")[0]
                if label:
                    known["LinuxSecurityLabel"] = ("ay", label + b"\0")
    except struct_error as error:
        raise Malformed("metadata of another size") from error
    if groups is not None and "UnixUserID" in known:
        known["UnixGroupIDs"] = ("au", sorted(groups if gid is None else groups | {gid}))
    return known


def _known(*ids: int) -> int | None:
    for number in ids:
        if number < _UNKNOWN:
            return number
    return None


def metadata(
    pid: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] | None = None,
    label: bytes | None = None,
) -> list[Item]:
    """Items for a classic connection, of which only what its socket says is known.

    As bus-proxyd does: the ids of the socket are the effective ones, all others are unknown."""
    items = []
    if uid is not None or gid is not None:
        effective = _UNKNOWN if uid is None else uid
        group = _UNKNOWN if gid is None else gid
        others = (_UNKNOWN, _UNKNOWN)
        items.append(
            Item(ITEM_CREDS, _CREDS.pack(_UNKNOWN, effective, *others, _UNKNOWN, group, *others))
        )
    if pid is not None:
        items.append(Item(ITEM_PIDS, _PIDS.pack(pid, 0, 0)))
    if groups is not None:
        items.append(Item(ITEM_AUXGROUPS, Struct(f"={len(groups)}Q").pack(*groups)))
    if label is not None:
        items.append(Item(ITEM_SECLABEL, label + b"\0"))
    return items
