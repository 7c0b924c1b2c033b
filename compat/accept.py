"""Acceptor: the listening sockets, and when not to listen.

Invariant: a listener is watched, or it is in `resting` and something will wake it: a timer after
the kernel ran out of something, the end of an unfinished connection after there were too many.
What goes wrong with one connection is told in the log and ends nothing else.
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

from .sysio import accept_one, close_socket

# Pause when the kernel is out of something; seconds.
BREATHER = 0.1

_NOTHING_THERE = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED})


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
            fd = listener.sock.fileno()
            self.listeners[fd] = listener
            self.watch(fd)

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
            # Somebody must finish, or time out, before anybody else gets in.
            self.rest(fd, 0.0)
            return
        got = accept_one(fd)
        if got < 0:
            if -got in _NOTHING_THERE:
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

    def rest(self, fd: int, seconds: float) -> None:
        """Stops accepting for a while, or with 0 until an unfinished connection is gone."""
        if fd in self.resting:
            return
        self.resting.add(fd)
        self.hub.listen(fd, False)
        if seconds:
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
