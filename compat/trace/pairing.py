"""Pairing: which call a reply answers, and how long that took.

Invariant: a call is paired at most once; the time is between the bus's passing on of the one and
of the other, so it is the callee's and the scheduler's, not the tracer's.
"""

from __future__ import annotations

from collections.abc import Iterable

from .records import NO_REPLY, PASSED, Record

KEPT = 100_000
"""Calls that wait for their reply; beyond, the oldest is given up."""


class Pairs:
    """Calls that were seen and not answered so far, by caller and serial."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], Record] = {}
        self.answered = 0

    def call_of(self, record: Record) -> Record | None:
        """Takes note of a record; the call that it answers, if it is a reply to one."""
        if record.kind != PASSED:
            return None
        if record.type == 1:
            if not record.flags & NO_REPLY:
                if len(self.open) >= KEPT:
                    del self.open[next(iter(self.open))]
                self.open[record.sender, record.serial] = record
            return None
        if record.reply_serial:
            call = self.open.pop((record.destination, record.reply_serial), None)
            if call is not None:
                self.answered += 1
            return call
        return None

    @property
    def unanswered(self) -> Iterable[Record]:
        return self.open.values()
