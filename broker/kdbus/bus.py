"""Bus: one bus of a domain, on top of a bus of the core.

Invariant: ordinary connections, activators and policy holders are connections of the core's bus as
well, with the same id; monitors are not, for nobody else may know of them. What the core reports
becomes notifications, which `flush()` sends when the command that caused them is done.

Two worlds on one bus: whoever is on `core` without being one of ours (`is_own`) belongs to another
front. `foreign` stands for it (see `jitney.kdbus.worlds`); `next` gets what the core reports, too.
Both are None where there is only kdbus. A notification that the core's report became is then sent
at once, so that it has its place among the messages.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import Any

from jitney.broker.bus import Bus as CoreBus
from jitney.broker.connection import Connection as Core
from jitney.broker.limits import Limits

from . import constants as c
from .connection import Connection
from .endpoint import Endpoint
from .message import Message
from .metadata import Caller, Creds
from .names import Names
from .notify import id_change, no_answer
from .policy import Policy
from .reply import Replies
from .routing import Routing


def _limits() -> Limits:
    limits = Limits()
    limits.max_completed_connections = 1 << 20
    # Users are counted in the domain, over all of its buses.
    limits.max_connections_per_user = 1 << 20
    return limits


class Bus(Routing):
    """One bus. `domain` holds it under `name` until its maker's handle is closed."""

    def __init__(
        self,
        domain: Any,
        name: bytes,
        flags: int,
        bloom: tuple[int, int],
        attach: int,
        caller: Caller,
        core: CoreBus | None = None,
    ) -> None:
        self.domain = domain
        self.name = name
        self.flags = flags
        self.bloom_size, self.bloom_hashes = bloom
        self.attach = attach
        self.uid = caller.creds.euid
        self.gid = caller.creds.egid
        self.creator = caller.creds.uid
        self.creator_facts = caller.facts()
        self.id = domain.next_id()
        self.id128 = os.urandom(16)
        self.core = core if core is not None else CoreBus(_limits(), self)
        self.next: Any = None
        self.foreign: Any = None
        self.policy = Policy()
        self.names = Names(self)
        self.replies = Replies()
        self.connections: dict[int, Connection] = {}
        self.monitors: dict[int, Connection] = {}
        # Those who have match sets: nobody else is asked about a broadcast.
        self.listeners: dict[int, Connection] = {}
        self.endpoints: dict[bytes, Endpoint] = {}
        self.pending: deque[Message] = deque()
        self.flushing = False
        self.last_message = 0
        # Metadata that some receiver may ask for: no other has to be gathered.
        self.wanted = 0
        # How many of its connections can be given descriptors.
        self.installers = 0
        self.active = True
        self.default = Endpoint(self, b"bus", flags, self.uid, self.gid, None)
        self.endpoints[b"bus"] = self.default

    @property
    def mode(self) -> int:
        """The permissions of its directory."""
        mode = 0o500
        if self.flags & (c.ACCESS_GROUP | c.ACCESS_WORLD):
            mode |= 0o050
        if self.flags & c.ACCESS_WORLD:
            mode |= 0o005
        return mode

    def is_owner(self, creds: Creds) -> bool:
        return creds.euid == self.uid or creds.privileged

    def close(self) -> None:
        """Its maker is gone: so are all endpoints and connections."""
        if self.active:
            self.active = False
            for endpoint in list(self.endpoints.values()):
                endpoint.close()
            self.pending.clear()
            self.domain.bus_gone(self)

    # Who is who

    def is_own(self, who: Any) -> bool:
        return isinstance(who, Connection)

    def conn_of(self, core: Core) -> Any:
        """Our connection, or None for one of another front."""
        conn = core.transport
        return conn if isinstance(conn, Connection) else None

    def whom(self, core: Core) -> Any:
        """Our connection, or what stands for one of another front; None if there is no other."""
        conn = self.conn_of(core)
        if conn is None and self.foreign is not None:
            return self.foreign.guest(core)
        return conn

    # Notifications

    def tell(self, notice: Message) -> None:
        self.pending.append(notice)

    def flush(self) -> None:
        """Sends what there is to say; to be called at the end of whatever changed something."""
        if self.flushing or not self.pending:
            return
        self.flushing = True
        try:
            while self.pending:
                self.notify(self.pending.popleft())
        finally:
            self.flushing = False

    def expire(self) -> None:
        """Ends calls whose deadline has passed."""
        for reply in self.replies.expired(self.domain.monotonic()):
            self.replies.unlink(reply)
            if reply.done is not None:
                reply.done(errno.ETIMEDOUT, None)
            else:
                self.tell(no_answer(c.ITEM_REPLY_TIMEOUT, reply.caller.id, reply.cookie))
        self.flush()

    # The core's front: what it reports

    def name_owner_changed(self, text: bytes, old: Core | None, new: Core | None) -> None:
        if text[:1] != b":":
            self.names.owner_changing(text, old, new)
        else:
            core = new if new is not None else old
            assert core is not None
            conn = self.conn_of(core)
            kind = c.ITEM_ID_ADD if new is not None else c.ITEM_ID_REMOVE
            self.tell(id_change(kind, core.id, conn.flags if conn is not None else 0))
        if self.next is not None:
            self.flush()
            self.next.name_owner_changed(text, old, new)

    def name_lost(self, conn: Core, text: bytes) -> None:
        if self.next is not None and self.conn_of(conn) is None:
            self.next.name_lost(conn, text)

    def name_acquired(self, conn: Core, text: bytes) -> None:
        if self.next is not None and self.conn_of(conn) is None:
            self.next.name_acquired(conn, text)

    def name_owned(self, conn: Core, text: bytes) -> None:
        if self.next is not None:
            self.next.name_owned(conn, text)

    def registered(self, conn: Core) -> None:
        if self.next is not None:
            self.next.registered(conn)

    def no_reply(self, caller: Core, serial: int, text: str) -> None:
        """Of calls between connections of ours the core knows nothing."""

    def log(self, level: str, text: str, *_: Any, **__: Any) -> None:
        if self.next is not None:
            self.next.log(level, text)

    def wake(self) -> None:
        """Nobody of ours has a queue in the core."""
