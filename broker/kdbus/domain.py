"""Domain: all buses that know of each other's names, their users, and one clock.

Invariant: no id is given twice in a domain, neither to a bus nor to a connection. A user's buses
and connections are counted here, over all buses; a custom endpoint is a user of its own.

`lock` is held by whoever calls anything of the domain; callbacks are made while it is held.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

from . import constants as c
from .errors import KdbusError
from .metadata import Caller
from .validity import attach_flags

if TYPE_CHECKING:
    from .bus import Bus

_NEVER = (1 << 64) - 1


class Domain:
    """Buses by name. `changed` is called when a deadline came up that may be the next one.

    `made(bus, endpoint)` and `removed(bus, endpoint)` are for who shows them to clients, with None
    for the bus itself; what `made` raises, makes it undone."""

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self.buses: dict[bytes, Bus] = {}
        # Those on which another front gives ids as well.
        self.shared: list[Bus] = []
        self.user_buses: dict[Any, int] = {}
        self.user_connections: dict[Any, int] = {}
        self.last_id = 0
        self.last_endpoint = 0
        self.monotonic = time.monotonic_ns
        self.realtime = time.time_ns
        # The earliest deadline that anybody was told of.
        self.soonest = _NEVER
        self.changed: Any = None
        self.made: Any = None
        self.removed: Any = None

    def next_id(self) -> int:
        return self.taken(self.last_id + 1)

    def taken(self, number: int) -> int:
        """A bus of the core gave this id; nobody gives it again."""
        self.last_id = max(self.last_id, number)
        for bus in self.shared:
            bus.core.last_id = self.last_id
        return number

    def make_bus(
        self,
        caller: Caller,
        name: bytes,
        flags: int,
        bloom: tuple[int, int],
        attach: int,
        core: Any = None,
    ) -> Bus:
        """BUS_MAKE: EINVAL, EEXIST, EMFILE. `core`: the bus that it is on, if there is one."""
        size, hashes = bloom
        if size < 8 or size > c.BLOOM_MAX or size % 8 or hashes < 1:
            raise KdbusError(errno.EINVAL)
        attach = attach_flags(attach)
        check_prefix(name, caller)
        if name in self.buses:
            raise KdbusError(errno.EEXIST)
        uid = caller.creds.uid
        if self.user_buses.get(uid, 0) >= c.USER_BUSES_MAX:
            raise KdbusError(errno.EMFILE)
        from .bus import Bus

        bus = Bus(self, name, flags, bloom, attach, caller, core)
        self.buses[name] = bus
        self.user_buses[uid] = self.user_buses.get(uid, 0) + 1
        if self.made is not None:
            try:
                self.made(bus, None)
            except BaseException:
                bus.close()
                raise
        return bus

    def bus_gone(self, bus: Bus) -> None:
        if bus in self.shared:
            self.shared.remove(bus)
        if self.buses.get(bus.name) is bus:
            del self.buses[bus.name]
            _less(self.user_buses, bus.creator)
            if self.removed is not None:
                self.removed(bus, None)

    # Users

    def count_connection(self, user: Any) -> None:
        if self.user_connections.get(user, 0) >= c.USER_CONNECTIONS_MAX:
            raise KdbusError(errno.EMFILE)
        self.user_connections[user] = self.user_connections.get(user, 0) + 1

    def uncount_connection(self, user: Any) -> None:
        _less(self.user_connections, user)

    # Time

    def watch(self, deadline: int) -> None:
        """A call has this deadline."""
        if deadline < self.soonest:
            self.soonest = deadline
            if self.changed is not None:
                self.changed(deadline)

    def expire(self) -> int | None:
        """Ends what is over; the next deadline, in nanoseconds, if there is one."""
        self.soonest = _NEVER
        found = None
        for bus in list(self.buses.values()):
            bus.expire()
            deadline = bus.replies.next_deadline()
            if deadline is not None and (found is None or deadline < found):
                found = deadline
        if found is not None:
            self.soonest = found
        return found


def check_prefix(name: bytes, caller: Caller) -> None:
    """Buses and endpoints begin with their maker's uid."""
    if not name.startswith(b"%d-" % caller.creds.euid):
        raise KdbusError(errno.EINVAL)


def _less(counts: dict[Any, int], user: Any) -> None:
    counts[user] -= 1
    if not counts[user]:
        del counts[user]
