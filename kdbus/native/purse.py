"""Purse: how many descriptors of ours one user has, and closing what may last to close.

Invariant: a user has at most `most` descriptors in queues and outboxes; more are refused (EMFILE).
A descriptor whose last close lasts keeps one thread, which is its user's alone, and with
CLOSING_MAX of them waiting to be closed nothing more of that user is read, for each frame could
bring others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..descriptors import FdHandle, close

CLOSING_MAX = 512


class HeldFd(FdHandle):
    """A descriptor that counts for whoever sent it."""

    def __init__(self, fd: int, purse: Purse) -> None:
        super().__init__(fd, purse.close)
        self.purse = purse
        purse.held += 1

    def drop(self) -> None:
        self.holders -= 1
        if not self.holders:
            self.purse.held -= 1
            self.close(self.fd)


class Purse:
    """`later` runs a job on a thread; `recovered(purse)` is called on some thread when `stalled`
    sockets may be read from again."""

    def __init__(
        self,
        later: Callable[[Callable[[], None]], None],
        recovered: Callable[[Purse], None],
        most: int,
    ) -> None:
        self.later = later
        self.recovered = recovered
        self.most = most
        self.held = 0
        self.guard = threading.Lock()
        self.closing: deque[int] = deque()
        self.at_it = False
        self.stalled: list[Any] = []

    @property
    def full(self) -> bool:
        return len(self.closing) >= CLOSING_MAX

    def close(self, fd: int) -> None:
        self.close_all((fd,))

    def close_all(self, fds: Sequence[int]) -> None:
        with self.guard:
            self.closing.extend(fds)
            if self.at_it:
                return
            self.at_it = True
        self.later(self.work)

    def work(self) -> None:
        while True:
            with self.guard:
                if not self.closing:
                    self.at_it = False
                    return
                fd = self.closing.popleft()
            close(fd)
            if self.stalled and not self.full:
                self.recovered(self)
