"""Places: payload that is copied once, out of its sender's memory and into its receiver's pool.

Invariant: a slice that `begin()` gave is charged to the sender, and told to nobody before a message
was put there with all of its payload; what comes of it instead is `undo()`. All is called with the
domain's lock held; the copy itself is made without, for it may last. A pool has at most one such
slice: more of it nobody can hold by not letting us read.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError

from ..ordinary import Payload

if not cython.compiled:
    from jitney.broker.kdbus.connection import Connection
    from jitney.broker.kdbus.message import Message

_EXPECT_REPLY = c.EXPECT_REPLY
# As many as one copy takes.
_VECS_MAX = 16


class Apart(Payload):
    """Payload that is in the client's memory still: `vecs` has the address and size of each part,
    for which the message has an empty place; `total`: how much it is."""

    def __init__(self) -> None:
        self.vecs: list[int] = []
        self.total = 0

    def take(self, message: Message, where: int, size: int) -> bool:
        if len(self.vecs) >= 2 * _VECS_MAX:
            return False
        self.vecs.append(where)
        self.vecs.append(size)
        self.total += size
        message.add_data(None)
        return True


class Placed:
    """A part of a message that is in the pool already, at that place."""

    def __init__(self, size: int, at: int) -> None:
        self.size = size
        self.at = at

    def __len__(self) -> int:
        return self.size

    def into(self, _: Any, at: int) -> None:
        """What `Area.put()` asks for whatever is not bytes."""
        assert at == self.at


class Places:
    """`filling`: those into whose pools something is being copied."""

    def __init__(self) -> None:
        self.filling: set[Connection] = set()

    def receiver(self, conn: Connection, message: Message, creds: Any) -> Connection | None:
        """Who gets this message and nobody else, if it is as large as it was sent."""
        bus = conn.bus
        if bus.monitors or bus.foreign is not None:
            return None
        try:
            found, name = bus.find(message)
        except KdbusError:
            return None
        # What may move to another connection is kept beside the pool.
        if (
            not found.active
            or found.recv_flags
            or (name is not None and name.activator is not None)
        ):
            return None
        if message.flags & _EXPECT_REPLY or not message.timeout:
            may = conn.may_talk(creds, found)
        else:
            may = bus.replies.find(conn, found, message.timeout) is not None
        return found if may else None

    def begin(
        self, conn: Connection, message: Message, vecs: list[int], total: int, creds: Any
    ) -> tuple[Any, ...] | None:
        """(receiver, its pool's memory, where the payload goes); None where it has to be copied
        elsewhere first. The message then has its place, and its parts theirs."""
        found = self.receiver(conn, message, creds)
        if found is None or found in self.filling:
            return None
        target = found.pool.memory.whole()
        if target is None:
            return None
        items = 64
        parts = message.parts
        for i in range(len(parts)):
            old = parts[i]
            items += 32 if old[0] == 1 else len(old[1])
        try:
            part = conn.bus.room(found, conn.user, (items + total + 7) & ~7)
        except KdbusError:
            return None
        message.placed = part
        at = part.offset + items
        n = 1
        for i in range(len(parts)):
            old = parts[i]
            if old[0] == 1:
                size = vecs[n]
                n += 2
                parts[i] = (1, Placed(size, at))
                at += size
        self.filling.add(found)
        return found, target, part.offset + items

    def undo(self, conn: Connection, receiver: Connection, message: Message) -> None:
        """Gives the slice back, if it was not used."""
        part = message.placed
        if part is not None:
            message.placed = None
            receiver.discharge(conn.user, part.size, 0)
            receiver.pool.release(part)
