"""Who waits for which name: the plain data of activations under way.

Invariant: `Waiting` entries are counted in exactly one `Pending` and, where they have a caller, in
exactly one `Held` of its connection and one of its user; all numbers go back to zero with the last
entry.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .spawn import Child


@dataclass(slots=True, eq=False)
class Waiting:
    """One message kept until a name has an owner.

    `conn`: its sender, None for a message of the bus itself (to systemd), which then is `wire`;
    `msg`: a copy that owns its bytes and descriptors; `auto`: it goes on to the new owner, where
    otherwise it is a StartServiceByName that only wants to be answered.
    """

    conn: Any
    msg: Any = None
    wire: bytes = b""
    auto: bool = True

    @property
    def n_bytes(self) -> int:
        return self.msg.size if self.msg is not None else len(self.wire)

    @property
    def n_fds(self) -> int:
        fds = self.msg.fds if self.msg is not None else None
        return len(fds) if fds is not None else 0


@dataclass(slots=True)
class Held:
    """What the bus keeps of one connection's messages, over all names."""

    messages: int = 0
    n_bytes: int = 0
    n_fds: int = 0

    def add(self, entry: Waiting, sign: int = 1) -> None:
        self.messages += sign
        self.n_bytes += sign * entry.n_bytes
        self.n_fds += sign * entry.n_fds


@dataclass(slots=True, eq=False)
class Pending:
    """A name on its way to an owner.

    `exec` and `unit`: what was to be started, or None; `helper`: it goes through the set-uid
    helper; `deadline`: when it is given up, in the loop's time; `child`: the process that was
    started for it, if the bus did so itself; `held`: bytes and descriptors of the messages.
    """

    name: bytes
    exec: str | None = None
    unit: str | None = None
    helper: bool = False
    deadline: float = 0.0
    timer: asyncio.TimerHandle | None = None
    child: Child | None = None
    entries: deque[Waiting] = field(default_factory=deque)
    held: Held = field(default_factory=Held)

    @property
    def shown(self) -> str:
        return self.name.decode(errors="replace")


class Book:
    """All activations under way.

    `names`: name -> Pending; `callers`: id of a connection -> what is kept of its messages, `users`
    the same for all connections of a user; `total`: all entries, which max_pending_service_starts
    limits.
    """

    def __init__(self) -> None:
        self.names: dict[bytes, Pending] = {}
        self.callers: dict[int, Held] = {}
        self.users: dict[Any, Held] = {}
        self.total = Held()

    def add(self, pending: Pending, entry: Waiting) -> None:
        """Appends an entry, and the activation if it is a new one."""
        self.names[pending.name] = pending
        pending.entries.append(entry)
        pending.held.add(entry)
        self.total.add(entry)
        if entry.conn is not None:
            self.callers.setdefault(entry.conn.id, Held()).add(entry)
            self.users.setdefault(entry.conn.user, Held()).add(entry)

    def held_of(self, conn: Any) -> Held:
        """What is kept of the connection's messages; not to be changed."""
        return self.callers.get(conn.id) or Held()

    def held_of_user(self, conn: Any) -> Held:
        """The same for all connections of the connection's user."""
        return self.users.get(conn.user) or Held()

    def take(self, pending: Pending) -> list[Waiting]:
        """Ends an activation: forgets it and returns its entries, oldest first."""
        if self.names.get(pending.name) is pending:
            del self.names[pending.name]
        if pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        entries = list(pending.entries)
        for entry in entries:
            self._forget(pending, entry)
        pending.entries.clear()
        return entries

    def drop_caller(self, conn: Any) -> int:
        """Drops the entries of a connection that is gone; how many there were.

        The services go on starting: others may want them, and they cost nobody anything.
        """
        held = self.callers.get(conn.id)
        if held is None:
            return 0
        count = held.messages
        for pending in self.names.values():
            mine = [entry for entry in pending.entries if entry.conn is conn]
            if mine:
                pending.entries = deque(e for e in pending.entries if e.conn is not conn)
                for entry in mine:
                    self._forget(pending, entry)
        return count

    def _forget(self, pending: Pending, entry: Waiting) -> None:
        pending.held.add(entry, -1)
        self.total.add(entry, -1)
        if entry.conn is not None:
            _less(self.callers, entry.conn.id, entry)
            _less(self.users, entry.conn.user, entry)


def _less(kept: dict[Any, Held], key: Any, entry: Waiting) -> None:
    held = kept[key]
    held.add(entry, -1)
    if not held.messages:
        del kept[key]
