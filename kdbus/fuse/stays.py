"""Stays: who has threads of ours wait, or might have.

Invariant: what `begin()` counted is counted until `end()`, both with the domain's lock held. Of
AWAY_MAX threads a process that kept us waiting before has a few at most, and for one descriptor
fewer; its user as many as are left for others. Everybody else may, as long as there are any.
"""

from __future__ import annotations

import errno
from typing import Any

from jitney.broker.kdbus.errors import KdbusError

STUCK_MAX = 4
PROCESS_MAX = 16
AWAY_MAX = 512
MANY_SUSPECTS = 8
"""A user with so many open nodes that kept us waiting is not trusted altogether."""


def _count(counts: dict[int, int], key: int, change: int) -> dict[int, int]:
    left = counts.get(key, 0) + change
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)
    return counts


class Stays:
    """`suspected`: processes that kept us waiting before."""

    def __init__(self, suspected: dict[int, int]) -> None:
        self.suspected = suspected
        self.away = 0
        self.user_away: dict[int, int] = {}
        self.process_away: dict[int, int] = {}

    def begin(self, handle: Any) -> None:
        """A thread is about to look into the memory of who has this node open; or EBUSY."""
        left = AWAY_MAX - self.away
        process = self.process_away.get(handle.process, 0)
        if handle.process in self.suspected:
            most = STUCK_MAX
            if process >= PROCESS_MAX or self.user_away.get(handle.uid, 0) > left:
                most = 0
        else:
            most = AWAY_MAX // 2 - process
        if handle.away >= most or left <= 0:
            raise KdbusError(errno.EBUSY)
        self.count(handle, 1)

    def end(self, handle: Any) -> None:
        self.count(handle, -1)

    def count(self, handle: Any, change: int) -> None:
        self.away += change
        handle.away += change
        _count(self.user_away, handle.uid, change)
        _count(self.process_away, handle.process, change)
