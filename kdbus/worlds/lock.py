"""Lock: the domain's, where one thread drives a classic bus and others serve kdbus's clients.

Invariant: the classic side's thread holds it whenever it does not sleep, so nothing of that side
has to know of it. When it wakes up and others wait for the lock, one of them is let in first: no
flood of classic messages keeps kdbus's clients out.
"""

from __future__ import annotations

import threading
import time

STEP = 0.00005
STEPS = 40
"""How long one who waits is given to be woken up, at most."""


class Lock:
    """As threading.RLock, with `retake()` for the thread that is always back at once."""

    def __init__(self) -> None:
        self.inner = threading.RLock()
        self.waiters: set[int] = set()
        self.taken = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self.inner.acquire(blocking=False):
            return True
        if not blocking:
            return False
        me = threading.get_ident()
        self.waiters.add(me)
        try:
            if not self.inner.acquire(timeout=timeout):
                return False
        finally:
            self.waiters.discard(me)
        self.taken += 1
        return True

    def release(self) -> None:
        self.inner.release()

    def retake(self) -> None:
        """acquire(), behind one of those who wait."""
        if self.waiters:
            before = self.taken
            for _ in range(STEPS):
                time.sleep(STEP)
                if self.taken != before or not self.waiters:
                    break
        self.inner.acquire()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.inner.release()
