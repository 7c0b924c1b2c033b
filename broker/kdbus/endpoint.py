"""Endpoint: a door to a bus. The default one is open, a custom one shows what its policy allows.

Invariant: connections of a custom endpoint see, talk to and own nothing that the endpoint's policy
does not give them, whatever the bus's policy says, and pay from the endpoint's account, not from
their users'. An endpoint's connections end with it.
"""

from __future__ import annotations

import errno
from typing import Any

from . import constants as c
from .errors import KdbusError
from .metadata import Caller
from .policy import Policy


class Endpoint:
    """`user`: what stands for the user of a custom endpoint; None for the default one."""

    def __init__(self, bus: Any, name: bytes, flags: int, uid: int, gid: int, user: Any) -> None:
        self.bus = bus
        self.name = name
        self.flags = flags
        self.uid = uid
        self.gid = gid
        self.user = user
        self.policy = Policy()
        self.connections: dict[Any, None] = {}
        self.active = True

    @property
    def mode(self) -> int:
        mode = 0o600
        if self.flags & (c.ACCESS_GROUP | c.ACCESS_WORLD):
            mode |= 0o060
        if self.flags & c.ACCESS_WORLD:
            mode |= 0o006
        return mode

    @property
    def custom(self) -> bool:
        return self.user is not None

    def make_endpoint(self, caller: Caller, name: bytes, flags: int) -> Endpoint:
        """ENDPOINT_MAKE on this one: EPERM, EINVAL, EEXIST."""
        from .domain import check_prefix

        self.need_active()
        bus = self.bus
        check_prefix(name, caller)
        if name in bus.endpoints:
            raise KdbusError(errno.EEXIST)
        bus.domain.last_endpoint += 1
        user = ("endpoint", bus.domain.last_endpoint)
        made = Endpoint(bus, name, flags, caller.creds.euid, caller.creds.egid, user)
        bus.endpoints[name] = made
        if bus.domain.made is not None:
            try:
                bus.domain.made(bus, made)
            except BaseException:
                made.close()
                raise
        return made

    def update(self, caller: Caller, rules: Any) -> None:
        """ENDPOINT_UPDATE: the policy from now on."""
        self.need_active()
        self.policy.replace(self, rules, 0, True, caller.namespaces)

    def is_owner(self, creds: Any) -> bool:
        """Whether who opened it may do all on the bus; never through a custom endpoint."""
        return not self.custom and self.bus.is_owner(creds)

    def need_active(self) -> None:
        if not self.active:
            raise KdbusError(errno.ESHUTDOWN)

    def close(self) -> None:
        if self.active:
            self.active = False
            for conn in list(self.connections):
                conn.disconnect()
            self.bus.endpoints.pop(self.name, None)
            removed = self.bus.domain.removed
            if removed is not None:
                removed(self.bus, self)
