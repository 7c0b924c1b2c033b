"""Peer: one accepted socket, from its first byte to its last.

Invariant: `state` only moves forward: AUTHENTICATING, OPEN, CLOSED. While AUTHENTICATING
there is an `auth` and no `conn`; from OPEN on there is a `conn` whose `transport` this is.
`held`: it is not read from, see `throttle`; `store`: see `upgrade.store`. Descriptors in `fds_in`
have arrived and no message has claimed them yet.
"""

from __future__ import annotations

from typing import Any

from jitney.broker.connection import Connection
from jitney.broker.fds import FdSet
from jitney.broker.mem import Buffer

from .auth import Auth
from .sysio import Poller

AUTHENTICATING, OPEN, CLOSED = 0, 1, 2

RECEIVE = 131072
"""Size in bytes of the receive buffer that all share: what a peer may say in its turn at most."""

# A copy that is a C integer when compiled.
_RECEIVE = RECEIVE


class Peer:
    """Transport state of one client; the hub is the only one who changes it."""

    def __init__(self, fd: int, listener: Any) -> None:
        self.fd = fd
        self.listener = listener
        self.state = AUTHENTICATING
        self.auth: Auth | None = None
        self.nonce = b""
        self.creds: Any = None
        self.conn: Connection | None = None
        self.partial: Buffer | None = None
        self.fds_in: list[int] = []
        self.with_fds = False
        self.blocked = False
        self.wide = False
        self.turn = _RECEIVE
        self.held = False
        self.wanted = 0
        self.store: Any = None

    def watch(self, poller: Poller, writable: bool) -> None:
        """Has the poller tell when there is something to read, unless the peer is held, and, with
        `writable`, when there is room to write."""
        poller.modify(self.fd, not self.held, writable)
        if self.store is not None:
            self.store.watched(self)

    def discard_fds(self) -> None:
        """Closes the descriptors that no message has claimed."""
        if self.fds_in:
            # The set closes them when it goes, that is at once.
            FdSet(self.fds_in)
            self.fds_in = []

    @property
    def label(self) -> str:
        """How logs call it."""
        return self.conn.label if self.conn is not None else f"(unauthenticated, fd {self.fd})"

    def __repr__(self) -> str:
        return f"<Peer fd={self.fd} state={self.state} {self.conn!r}>"
