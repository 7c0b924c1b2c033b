"""Acceptor: the listening sockets, and when not to listen.

Invariant: a listener is watched, or it is in `resting` and something will wake it: a timer after
the kernel ran out of something, the end of an unfinished connection after there were too many.
What goes wrong with one connection is told in the log and ends nothing else.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any

# Accepted in one go per wake-up of a listener, so that a storm of connects cannot hold the loop.
BATCH = 64
# Pause when the kernel is out of something; seconds.
BREATHER = 0.1

_NOTHING_THERE = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED})


class Acceptor:
    """Accepts for a hub, which takes the sockets (`admit`)."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.loop: Any = None
        self.listeners: list[Any] = []
        self.resting: set[Any] = set()
        self.out_of_room = False

    def start(self, loop: Any, listeners: list[Any]) -> None:
        """Begins to listen; see `listen.Listener`."""
        self.loop = loop
        for listener in listeners:
            self.listeners.append(listener)
            loop.add_reader(listener.sock.fileno(), self.accept, listener)

    def stop(self) -> None:
        """Stops listening; the sockets are their owner's."""
        for listener in self.listeners:
            self.loop.remove_reader(listener.sock.fileno())
        self.listeners.clear()

    def accept(self, listener: Any) -> None:
        """A listening socket is readable."""
        hub = self.hub
        for _ in range(BATCH):
            if len(hub.incomplete) >= hub.bus.limits.max_incomplete_connections:
                # Somebody must finish, or time out, before anybody else gets in.
                self.rest(listener, 0.0)
                return
            try:
                sock, _address = listener.sock.accept()
            except OSError as error:
                if error.errno in _NOTHING_THERE:
                    return
                if not self.out_of_room:
                    self.out_of_room = True
                    hub.front.log("warning", f"Failed to accept connections: {error.strerror}")
                self.rest(listener, BREATHER)
                return
            self.out_of_room = False
            try:
                hub.admit(sock, listener)
            except Exception:
                sock.close()
                hub.front.log("warning", "Failed to admit a connection: " + traceback.format_exc())

    def rest(self, listener: Any, seconds: float) -> None:
        """Stops accepting for a while, or with 0 until an unfinished connection is gone."""
        if listener in self.resting:
            return
        self.resting.add(listener)
        self.loop.remove_reader(listener.sock.fileno())
        if seconds:
            self.loop.call_later(seconds, self.resume, listener)

    def resume(self, listener: Any) -> None:
        if listener in self.resting and listener in self.listeners:
            self.resting.discard(listener)
            self.loop.add_reader(listener.sock.fileno(), self.accept, listener)

    def wake(self) -> None:
        """An unfinished connection is out of the way."""
        for listener in list(self.resting):
            self.resume(listener)
