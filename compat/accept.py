"""Acceptor: the listening sockets, and when not to listen.

Invariant: a listener is watched, or it is in `resting` and something will wake it: a timer after
the kernel ran out of something, the end of an unfinished connection after there were too many,
or the moment when one of those has had its time.
What goes wrong with one connection is told in the log and ends nothing else.
"""

from __future__ import annotations

import errno
import os
import select
import traceback
from collections import Counter
from typing import Any

from .sysio import accept_one, close_socket

# What a connection has to authenticate in while others have no room to; seconds.
PATIENCE = 1.0

# Pause when the kernel is out of something; seconds.
BREATHER = 0.1

# EINVAL is what some systems say of a socket that was shut down.
_NOTHING_THERE = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EINVAL})
_SHUT = getattr(select, "POLLRDHUP", 0)


def is_shut(fd: int) -> bool:
    """Whether a listening socket was shut down."""
    poll = select.poll()
    poll.register(fd, _SHUT)
    return bool(poll.poll(0))


class Acceptor:
    """Accepts for a hub, which watches the listening sockets and takes what comes (`admit`)."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.loop: Any = None
        self.listeners: dict[int, Any] = {}
        self.resting: set[int] = set()
        self.out_of_room = False

    def start(self, loop: Any, listeners: list[Any]) -> None:
        """Begins to listen; see `listen.Listener`."""
        self.loop = loop
        for listener in listeners:
            self.open(listener)

    def open(self, listener: Any) -> None:
        """One more, while the others are at work."""
        fd = listener.sock.fileno()
        self.listeners[fd] = listener
        self.watch(fd)

    def shut(self, listener: Any) -> None:
        """One less; its socket is still open and its owner's."""
        fd = listener.sock.fileno()
        if self.listeners.pop(fd, None) is not None:
            self.resting.discard(fd)
            self.hub.listen(fd, False)

    def stop(self) -> None:
        """Stops listening; the sockets are their owner's."""
        for fd in self.listeners:
            self.hub.listen(fd, False)
        self.listeners.clear()

    def accept(self, fd: int) -> None:
        """A listening socket is readable: takes one connection. If there are more it stays
        readable, and whoever else has something to say comes first."""
        hub = self.hub
        if len(hub.incomplete) >= hub.bus.limits.max_incomplete_connections:
            wait = self.make_room()
            if wait > 0:
                # Somebody must finish, or have had his time, before anybody else gets in.
                self.rest(fd, wait)
                return
        got = accept_one(fd)
        if got < 0:
            if -got in _NOTHING_THERE:
                if -got == errno.EINVAL or is_shut(fd):
                    # By whoever else has it. It would be ready for ever, and never for anything.
                    listener = self.listeners[fd]
                    text = f"Nobody can connect to {listener.address} any more: it was shut down"
                    hub.front.log("warning", text)
                    self.shut(listener)
                return
            if not self.out_of_room:
                self.out_of_room = True
                hub.front.log("warning", f"Failed to accept connections: {os.strerror(-got)}")
            self.rest(fd, BREATHER)
            return
        self.out_of_room = False
        try:
            hub.admit(got, self.listeners[fd])
        except Exception:
            close_socket(got)
            hub.front.log("warning", "Failed to admit a connection: " + traceback.format_exc())

    def make_room(self) -> float:
        """There are as many unfinished connections as may be: ends the oldest of the user who has
        most of them if it has had PATIENCE, so that nobody can keep all others out by saying
        nothing. 0 if that made room, else the seconds until it will."""
        hub = self.hub
        counts = Counter(peer.creds.uid for peer in hub.incomplete)
        if not counts:
            return BREATHER
        worst = counts.most_common(1)[0][0]
        peer = next(peer for peer in hub.incomplete if peer.creds.uid == worst)
        since = hub.incomplete[peer] - hub.bus.limits.auth_timeout / 1000
        left: float = since + PATIENCE - hub.bus.clock()
        if left > 0:
            return left
        hub.front.log(
            "info",
            f"Connection {peer.label} (uid={worst}) did not authenticate while others wait",
            "closed",
            uid=worst,
            reason="did not authenticate while others wait",
        )
        hub.drop(peer)
        return 0.0

    def rest(self, fd: int, seconds: float) -> None:
        """Stops accepting for a while, or until an unfinished connection is gone."""
        if fd in self.resting:
            return
        self.resting.add(fd)
        self.hub.listen(fd, False)
        self.loop.call_later(seconds, self.resume, fd)

    def resume(self, fd: int) -> None:
        if fd in self.resting and fd in self.listeners:
            self.resting.discard(fd)
            self.watch(fd)

    def watch(self, fd: int) -> None:
        if not self.hub.listen(fd, True):
            self.rest(fd, BREATHER)

    def wake(self) -> None:
        """An unfinished connection is out of the way."""
        for fd in list(self.resting):
            self.resume(fd)
