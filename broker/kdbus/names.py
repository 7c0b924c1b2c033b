"""Names: kdbus's rules on top of the core's registry: flags, activators, hand-over.

Invariant: who owns a name and who waits for it is in the core's registry alone; here are only the
words that kdbus has for it. While nobody owns a name its activator takes the messages; when a name
goes to an owner or back to the activator, the messages that were sent to it go as well.
"""

from __future__ import annotations

import errno
from typing import Any

from jitney.broker import names as registry
from jitney.broker.connection import Connection as Core

from . import constants as c
from .errors import KdbusError
from .metadata import Creds
from .notify import name_change


class Names:
    """The names of one bus. `incoming`: flags of the request that the registry is at work on."""

    def __init__(self, bus: Any) -> None:
        self.bus = bus
        self.registry = bus.core.names
        self.incoming: int | None = None

    def acquire(self, conn: Any, text: bytes, flags: int, creds: Creds) -> int:
        """Asks for a name; what became of it as flags, or EPERM, E2BIG, EEXIST."""
        if not conn.may_own(creds, text):
            raise KdbusError(errno.EPERM)
        if self.bus.foreign is not None and not self.bus.foreign.may_own(conn, text):
            raise KdbusError(errno.EPERM)
        core = conn.core
        name = self.registry.get(text)
        claim = name.find(core) if name is not None else None
        if claim is None and len(core.names) >= c.NAMES_MAX:
            raise KdbusError(errno.E2BIG)
        asked = 0
        if flags & c.NAME_ALLOW:
            asked |= registry.ALLOW_REPLACEMENT
        if not flags & c.NAME_QUEUE:
            asked |= registry.DO_NOT_QUEUE
        # Who cannot replace waits at the end; classic D-Bus would let it go ahead of others.
        replaceable = (
            name is not None and name.queue and name.queue[0].flags & registry.ALLOW_REPLACEMENT
        )
        if flags & c.NAME_REPLACE and replaceable:
            asked |= registry.REPLACE_EXISTING
        saved = flags & (c.NAME_ALLOW | c.NAME_QUEUE)
        self.incoming = saved
        try:
            result = self.registry.request(core, text, asked)
        finally:
            self.incoming = None
        if result == registry.PRIMARY_OWNER:
            return saved | c.NAME_PRIMARY | c.NAME_ACQUIRED
        if result == registry.ALREADY_OWNER:
            return saved | c.NAME_PRIMARY
        if result == registry.IN_QUEUE:
            return saved | c.NAME_IN_QUEUE | (c.NAME_ACQUIRED if claim is None else 0)
        if claim is None:
            raise KdbusError(errno.EEXIST)
        # It waited, and does not want to any more.
        return saved

    def release(self, conn: Any, text: bytes) -> None:
        """Gives up a name or a place in its queue; ESRCH or EADDRINUSE."""
        name = self.registry.get(text)
        if name is None:
            raise KdbusError(errno.ESRCH)
        if name.find(conn.core) is None:
            raise KdbusError(errno.EADDRINUSE)
        self.registry.release(conn.core, text)

    def release_all(self, conn: Any) -> None:
        if conn.activates is not None:
            self.drop_activator(conn)
        self.registry.release_all(conn.core, False)

    # Activators

    def set_activator(self, conn: Any, text: bytes) -> None:
        """Makes the connection what takes messages while the name has no owner; or EEXIST."""
        if not conn.may_own(conn.creds, text):
            raise KdbusError(errno.EPERM)
        name = self.registry.get(text)
        if name is not None and name.activator is not None:
            raise KdbusError(errno.EEXIST)
        self.registry.set_activator(text, conn)
        conn.activates = self.registry.get(text)
        if conn.activates.owner is None:
            flags = c.NAME_ACTIVATOR | c.NAME_PRIMARY
            self.bus.tell(name_change(c.ITEM_NAME_ADD, text, 0, 0, conn.id, flags))

    def drop_activator(self, conn: Any) -> None:
        name = conn.activates
        if name.owner is None:
            flags = c.NAME_ACTIVATOR | c.NAME_PRIMARY
            self.bus.tell(name_change(c.ITEM_NAME_REMOVE, name.text, conn.id, flags, 0, 0))
        conn.activates = None
        self.registry.set_activator(name.text, None)

    # What the registry reports

    def owner_changing(self, text: bytes, old: Core | None, new: Core | None) -> None:
        """Says it kdbus's way; the registry still shows the old state."""
        name = self.registry.get(text)
        activator = name.activator if name is not None else None
        if not self.bus.is_own(activator):
            activator = None
        old_id = old_flags = new_id = new_flags = 0
        if old is not None:
            old_id, old_flags = old.id, self.flags_of(name, name.queue[0])
        elif activator is not None:
            old_id, old_flags = activator.id, c.NAME_ACTIVATOR | c.NAME_PRIMARY
        if new is not None:
            new_id, new_flags = new.id, c.NAME_PRIMARY
            if self.incoming is not None:
                new_flags |= self.incoming
            else:
                claim = name.find(new) if name is not None else None
                if claim is not None:
                    new_flags |= self.flags_of(name, claim) & ~c.NAME_IN_QUEUE
        elif activator is not None:
            new_id, new_flags = activator.id, c.NAME_ACTIVATOR | c.NAME_PRIMARY
        if activator is not None:
            giver = activator if old is None else self.bus.conn_of(old)
            taker = activator if new is None else self.bus.conn_of(new)
            if giver is not taker and activator in (giver, taker):
                self.bus.move_messages(giver, taker, name, new)
        if old_id == 0:
            kind = c.ITEM_NAME_ADD
        else:
            kind = c.ITEM_NAME_CHANGE if new_id else c.ITEM_NAME_REMOVE
        self.bus.tell(name_change(kind, text, old_id, old_flags, new_id, new_flags))

    # Answers

    def flags_of(self, name: Any, claim: Any) -> int:
        """A claim's flags in kdbus's words."""
        flags = 0
        if claim.flags & registry.ALLOW_REPLACEMENT:
            flags |= c.NAME_ALLOW
        if not claim.flags & registry.DO_NOT_QUEUE:
            flags |= c.NAME_QUEUE
        return flags | (c.NAME_PRIMARY if name.queue[0] is claim else c.NAME_IN_QUEUE)

    def held(self, core: Core, activates: Any = None) -> list[tuple[bytes, int]]:
        """(name, flags) of all that a connection owns, waits for or activates."""
        found = []
        if activates is not None:
            place = c.NAME_PRIMARY if activates.owner is None else c.NAME_IN_QUEUE
            found.append((activates.text, c.NAME_ACTIVATOR | place))
        for text, name in core.names.items():
            found.append((text, self.flags_of(name, name.find(core))))
        return found
