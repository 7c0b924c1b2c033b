"""WatchedSet: a poll() set on somebody's event loop, which watches each descriptor by itself.

Invariant: the loop watches what the set has, for the same events. A set of the kernel's (epoll,
kqueue) is one descriptor to a loop; poll() is none, so this stands in where there is nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jitney.compat import ways


class WatchedSet(ways.PollSet):
    """`ready()` is called on the loop when anything in the set is."""

    def __init__(self, loop: Any, ready: Callable[[], None]) -> None:
        super().__init__()
        self.loop = loop
        self.ready = ready
        self.fds: set[int] = set()

    def register(self, fd: int, events: int) -> None:
        super().register(fd, events)
        self.fds.add(fd)
        self._watch(fd, events)

    def modify(self, fd: int, events: int) -> None:
        super().modify(fd, events)
        self._watch(fd, events)

    def unregister(self, fd: int) -> None:
        super().unregister(fd)
        self.fds.discard(fd)
        self._watch(fd, 0)

    def close(self) -> None:
        for fd in self.fds:
            self._watch(fd, 0)
        self.fds.clear()

    def _watch(self, fd: int, events: int) -> None:
        if events & ways.IN:
            self.loop.add_reader(fd, self.ready)
        else:
            self.loop.remove_reader(fd)
        if events & ways.OUT:
            self.loop.add_writer(fd, self.ready)
        else:
            self.loop.remove_writer(fd)
