# cython: infer_types=True
"""Names: well-known names, their owners and who waits for them.

Invariant: a Name is in the registry while it has an owner or an activator. The first entry
of `queue` is the primary owner, and only then is the name in that connection's `owned`;
every entry's connection has the name in its `names`. Each change of the primary owner is
reported twice to the listener: `owner_changing()` while the registry still shows the old
state (dbus-daemon's signals are routed by that), `owner_changed()` when it shows the new one.

Rules: D-Bus specification, RequestName and ReleaseName; order of reports as dbus-daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .atoms import Atom, Atoms
from .connection import Connection

ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4

PRIMARY_OWNER, IN_QUEUE, EXISTS, ALREADY_OWNER = 1, 2, 3, 4
RELEASED, NON_EXISTENT, NOT_OWNER = 1, 2, 3


class Owner:
    """A connection's claim on a name, with the flags of its latest request."""

    def __init__(self) -> None:
        self.conn: Connection | None = None
        self.flags = 0


class Name:
    """One well-known name. `activator` (kdbus: an activator connection) takes messages while
    nobody owns the name; the front decides what that is."""

    def __init__(self) -> None:
        self.text = b""
        self.atom: Atom | None = None
        self.owner: Connection | None = None
        self.queue: list[Owner] = []
        self.activator: Any = None

    @property
    def name(self) -> bytes:
        return self.text

    def find(self, conn: Connection) -> Owner | None:
        """The connection's claim, be it primary or queued."""
        for owner in self.queue:
            if owner.conn is conn:
                return owner
        return None

    def __repr__(self) -> str:
        return f"<Name {self.text.decode()} owner={self.owner} queued={len(self.queue)}>"


class Registry:
    """All names of a bus. `listener` is told of new owners; see the head of this file."""

    def __init__(self, atoms: Atoms, listener: Any) -> None:
        self.atoms = atoms
        self.listener = listener
        self.names: dict[bytes, Name] = {}

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names.values())

    def __len__(self) -> int:
        return len(self.names)

    def get(self, text: bytes) -> Name | None:
        return self.names.get(text)

    def ensure(self, text: bytes) -> Name:
        name = self.names.get(text)
        if name is None:
            atom = self.atoms.intern(text)
            name = Name()
            # One string for the name, its atom and the keys of all tables it stands in.
            name.text = text = atom.text
            name.atom = atom
            atom.name = name
            self.names[text] = name
        return name

    def forget(self, name: Name) -> None:
        """Drops the entry if nothing holds it any more."""
        if not name.queue and name.activator is None and self.names.get(name.text) is name:
            del self.names[name.text]
            name.atom.name = None
            self.atoms.release(name.atom)

    def set_activator(self, text: bytes, activator: Any) -> None:
        """Makes `activator` (None: nobody) take the messages while the name has no owner."""
        name = self.ensure(text)
        name.activator = activator
        self.forget(name)

    def request(self, conn: Connection, text: bytes, flags: int) -> int:
        """RequestName: PRIMARY_OWNER, IN_QUEUE, EXISTS or ALREADY_OWNER."""
        name = self.ensure(text)
        if not name.queue:
            self.listener.owner_changing(text, None, conn)
            self.enqueue(name, conn, flags)
            self.promote(name, None)
            return PRIMARY_OWNER
        first = name.queue[0]
        if first.conn is conn:
            first.flags = flags
            return ALREADY_OWNER
        replace = flags & REPLACE_EXISTING and first.flags & ALLOW_REPLACEMENT
        if not replace:
            if flags & DO_NOT_QUEUE:
                claim = name.find(conn)
                if claim is not None:
                    self.unqueue(name, claim)
                return EXISTS
            self.enqueue(name, conn, flags)
            return IN_QUEUE
        self.listener.owner_changing(text, first.conn, conn)
        self.enqueue(name, conn, flags)
        # The new claim stands second now; the old owner either leaves or goes behind it.
        if first.flags & DO_NOT_QUEUE:
            self.unqueue(name, first)
        else:
            name.queue[0], name.queue[1] = name.queue[1], first
        self.promote(name, first.conn)
        return PRIMARY_OWNER

    def release(self, conn: Connection, text: bytes) -> int:
        """ReleaseName: RELEASED, NON_EXISTENT or NOT_OWNER."""
        name = self.names.get(text)
        if name is None or not name.queue:
            return NON_EXISTENT
        claim = name.find(conn)
        if claim is None:
            return NOT_OWNER
        primary = name.queue[0] is claim
        if primary:
            heir = name.queue[1].conn if len(name.queue) > 1 else None
            self.listener.owner_changing(text, conn, heir)
        self.unqueue(name, claim)
        if primary:
            self.promote(name, conn)
        return RELEASED

    def release_all(self, conn: Connection, latest_first: bool) -> None:
        """Everything `conn` owns or waits for."""
        held = list(conn.names)
        if latest_first:
            held.reverse()
        for text in held:
            self.release(conn, text)

    def enqueue(self, name: Name, conn: Connection, flags: int) -> None:
        # A replacing claim goes right behind the owner, any other one to the end.
        claim = name.find(conn)
        if claim is None:
            claim = Owner()
            claim.conn = conn
            claim.flags = flags
            conn.names[name.text] = name
            conn.forget_verdicts()
            conn.user.names += 1
            if flags & REPLACE_EXISTING and name.queue:
                name.queue.insert(1, claim)
            else:
                name.queue.append(claim)
            return
        claim.flags = flags
        if flags & REPLACE_EXISTING:
            name.queue.remove(claim)
            name.queue.insert(1, claim)

    def unqueue(self, name: Name, claim: Owner) -> None:
        name.queue.remove(claim)
        del claim.conn.names[name.text]
        claim.conn.forget_verdicts()
        claim.conn.user.names -= 1

    def promote(self, name: Name, old: Connection | None) -> None:
        """The head of the queue is the owner from now on; tells the listener."""
        new = None
        if name.queue:
            head = name.queue[0]
            new = head.conn
        if old is not None:
            old.owned.pop(name.text, None)
            old.version += 1
        name.owner = new
        if new is not None:
            new.owned[name.text] = name
            new.version += 1
            self.listener.owner_changed(name.text, new)
        self.forget(name)
