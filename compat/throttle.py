# cython: infer_types=True
"""Throttle: who must wait with the next message until those before have gone out, and how much
anybody may say at a time.

Invariant: a peer is `held` if and only if its connection's own tally is marked so or about to be
looked at in `released`; a held peer is not read from, but for its end. A sender is held on account
of what it has waiting at connections of its own user, max_incoming_bytes or max_incoming_unix_fds
of it, as dbus-daemon(1) has it, or as much as one queue may hold at most. What it says to other
users is limited by their queues alone: somebody else's client that does not read must not silence
a service.

A peer's turn is `turn` bytes of its socket, between LEAST and RECEIVE: less after one that kept the
others waiting for longer than PATIENCE (a thousand refused messages take a while), and twice as
much after each one that did not.
"""

from __future__ import annotations

from jitney.broker.accounting import Accounts, Tally
from jitney.broker.limits import KEPT_BYTES, KEPT_FDS, Limits

from .peer import OPEN, RECEIVE, Peer
from .sysio import Poller

LEAST = 2048
PATIENCE = 1000
"""Microseconds."""

# Copies that are C integers when compiled.
_OPEN, _RECEIVE, _LEAST, _PATIENCE = OPEN, RECEIVE, LEAST, PATIENCE


class Throttle:
    """The held peers of one hub."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.max_bytes = 0
        self.max_fds = 0

    def set_limits(self, limits: Limits) -> None:
        """Takes new limits; who is held is looked at again when something of his is sent."""
        # Whoever is below that still has a turn, and none of it should be refused.
        self.max_bytes = min(limits.max_incoming_bytes, KEPT_BYTES - RECEIVE)
        self.max_fds = min(limits.max_incoming_unix_fds, KEPT_FDS)

    def over(self, tally: Tally) -> bool:
        if tally.bytes == 0:
            return False
        return tally.bytes >= self.max_bytes or (tally.fds > 0 and tally.fds >= self.max_fds)

    def must_wait(self, peer: Peer) -> bool:
        """Whether the peer has too much waiting to be read from."""
        tally = peer.conn.own_tally
        return tally is not None and self.over(tally)

    def spent(self, peer: Peer, microseconds: int) -> None:
        """The peer's turn took so long."""
        if microseconds > _PATIENCE:
            peer.turn = max(_LEAST, peer.turn >> 2)
        elif peer.turn < _RECEIVE:
            peer.turn = min(_RECEIVE, peer.turn << 1)

    def hold(self, peer: Peer, poller: Poller) -> None:
        """Stops reading from a peer that `must_wait()`."""
        peer.held = True
        peer.conn.own_tally.held = True
        peer.watch(poller, peer.blocked)

    def release(self, poller: Poller) -> None:
        """Something was sent: whoever has waited long enough is read from again."""
        released = self.accounts.released
        for tally in released:
            owner = tally.owner
            if owner is None:
                continue
            peer = owner.transport
            if peer is None or peer.state != _OPEN:
                continue
            if self.over(tally):
                tally.held = True
            else:
                peer.held = False
                peer.watch(poller, peer.blocked)
        released.clear()
