"""Worker: what one thread of the crew has to itself.

Invariant: `began` says since when it is at a request, `since` since when it waits for a client;
both are 0 otherwise. What it has nobody else writes to, but for `leading`.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from . import protocol as p

if not cython.compiled:
    from .sysio import now

GUESS = 512
"""So much of a message is read in the first go; most are not larger."""


class Worker:
    """`buffer` has the request, `room` what was read of its client; `finished`: synchronous calls
    whose answers the request brought, to be told when it is answered itself; `scratch`: what
    payload is copied to."""

    def __init__(self) -> None:
        self.buffer = bytearray(p.BUFFER)
        self.view = memoryview(self.buffer)
        self.room = bytearray(GUESS)
        self.leading = False
        self.tid = 0
        self.since = 0.0
        self.began = 0.0
        self.busy_with: Any = None
        self.finished: list[Any] = []
        self.scratch: Any = None

    def away(self, what: Any) -> None:
        """What follows may last as long as a client likes; `back()` ends it."""
        self.busy_with = what
        self.since = now()

    def back(self) -> None:
        self.since = 0.0
        self.busy_with = None
