# cython: infer_types=True
"""Meter: what has been sent, received, refused and waited for, in numbers that only grow.

Invariant: a connection's Counts are added to on the way of a message, by plain additions and
nothing else. What is added since they were last settled is missing in the totals of its user and
of the names that it owns; `Bus.settle()` brings these up to date, before a name changes hands,
when the connection ends, and when somebody looks. So a total never goes back, whoever leaves.

Times are by the bus's `moment`, which is read once a round, not once a message.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .errors import ACCESS_DENIED, LIMITS

FLOOR = 16
"""Microseconds: what took less is in the first bucket; each further one reaches twice as far."""
BUCKETS = 22
"""The last one, from 16.8 seconds on, has no end."""
TYPES = 5
"""By message type, 1 to 4; what is none of these is at 0."""
MAX_NAMES = 1000
"""Names whose totals are kept at a time, owned or not. Names come and go, memory does not."""
EACH_NAME = 64
"""Names of one owner to which what it does is added, each time that it gets or loses a name."""
_LOOKED_AT = 16


class Histogram:
    """How often something took how long."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        if not cython.compiled:
            self.buckets = [0] * BUCKETS

    def note(self, microseconds: int) -> None:
        if microseconds < 0:
            microseconds = 0
        i = 0
        rest = microseconds >> 4
        while rest and i < 21:
            rest >>= 1
            i += 1
        self.buckets[i] += 1
        self.count += 1
        self.sum += microseconds

    def add(self, other: Histogram, before: Histogram | None) -> None:
        """Adds what `other` has more than `before`."""
        for i in range(22):
            self.buckets[i] += other.buckets[i]
        self.count += other.count
        self.sum += other.sum
        if before is not None:
            for i in range(22):
                self.buckets[i] -= before.buckets[i]
            self.count -= before.count
            self.sum -= before.sum

    def copy_from(self, other: Histogram) -> None:
        for i in range(22):
            self.buckets[i] = other.buckets[i]
        self.count = other.count
        self.sum = other.sum

    def values(self) -> list[int]:
        """How many in each bucket."""
        return [self.buckets[i] for i in range(22)]


class Counts:
    """Of one connection, one user or one name.

    `sent`, `received`: messages by type; what is received was put into a queue, and `gone` out of
    it to the socket. `denied`: refused for the policy, `limited`: for a limit; `dropped`:
    broadcasts that found the queue full. `replies`: how long its callers waited for its replies;
    `waits`: how long messages waited in its queue, those aside that went out in the round that
    brought them."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.denied = 0
        self.limited = 0
        self.dropped = 0
        self.gone = 0
        self.replies: Histogram | None = None
        self.waits: Histogram | None = None
        self.settled: Counts | None = None
        if not cython.compiled:
            self.sent = [0] * TYPES
            self.received = [0] * TYPES

    def refused(self, code: str) -> None:
        """A message or call of its was refused for this reason."""
        if code == ACCESS_DENIED:
            self.denied += 1
        elif code == LIMITS:
            self.limited += 1

    def answered(self, microseconds: int) -> None:
        """A reply that somebody waited for so long."""
        if self.replies is None:
            self.replies = Histogram()
        self.replies.note(microseconds)

    def changed(self) -> bool:
        """Whether there is anything to settle."""
        before = self.settled
        if before is None:
            return True
        return (
            self.sent_bytes != before.sent_bytes
            or self.received_bytes != before.received_bytes
            or self.gone != before.gone
            or self.denied != before.denied
            or self.limited != before.limited
            or self.dropped != before.dropped
        )

    def add_to(self, total: Counts) -> None:
        """Adds to a total what has come since the last `settle()`."""
        for i in range(5):
            total.sent[i] += self.sent[i]
            total.received[i] += self.received[i]
        total.sent_bytes += self.sent_bytes
        total.received_bytes += self.received_bytes
        total.denied += self.denied
        total.limited += self.limited
        total.dropped += self.dropped
        total.gone += self.gone
        before = self.settled
        if before is not None:
            for i in range(5):
                total.sent[i] -= before.sent[i]
                total.received[i] -= before.received[i]
            total.sent_bytes -= before.sent_bytes
            total.received_bytes -= before.received_bytes
            total.denied -= before.denied
            total.limited -= before.limited
            total.dropped -= before.dropped
            total.gone -= before.gone
        if self.replies is not None:
            if total.replies is None:
                total.replies = Histogram()
            total.replies.add(self.replies, before.replies if before is not None else None)
        if self.waits is not None:
            if total.waits is None:
                total.waits = Histogram()
            total.waits.add(self.waits, before.waits if before is not None else None)

    def settle(self) -> None:
        """All that there is stands in the totals now."""
        before = self.settled
        if before is None:
            before = self.settled = Counts()
        for i in range(5):
            before.sent[i] = self.sent[i]
            before.received[i] = self.received[i]
        before.sent_bytes = self.sent_bytes
        before.received_bytes = self.received_bytes
        before.denied = self.denied
        before.limited = self.limited
        before.dropped = self.dropped
        before.gone = self.gone
        if self.replies is not None:
            if before.replies is None:
                before.replies = Histogram()
            before.replies.copy_from(self.replies)
        if self.waits is not None:
            if before.waits is None:
                before.waits = Histogram()
            before.waits.copy_from(self.waits)

    def traffic(self) -> tuple[list[int], int, list[int], int]:
        """Messages sent by type, bytes sent, messages received by type, bytes received."""
        return (
            [self.sent[i] for i in range(5)],
            self.sent_bytes,
            [self.received[i] for i in range(5)],
            self.received_bytes,
        )

    def waited(self) -> tuple[list[int], int]:
        """How many messages waited how long, all that are gone; and microseconds in all."""
        if self.waits is None:
            return [self.gone] + [0] * 21, 0
        buckets = self.waits.values()
        if self.gone > self.waits.count:
            buckets[0] += self.gone - self.waits.count
        return buckets, self.waits.sum


class NameTotals:
    """Totals by well-known name, of whoever owned it. `rest`: of names for which there was no room
    because all MAX_NAMES others are owned, and of those behind the first EACH_NAME of one
    owner. A name that nobody owns is forgotten first."""

    def __init__(self, names: Any) -> None:
        self.names = names
        self.by_name: dict[bytes, Counts] = {}
        self.rest = Counts()

    def of(self, text: bytes) -> Counts:
        total = self.by_name.get(text)
        if total is None:
            if len(self.by_name) >= MAX_NAMES and not self.make_room():
                return self.rest
            total = self.by_name[text] = Counts()
        return total

    def make_room(self) -> bool:
        """Forgets a name without an owner, if one is found soon; the others go to the end."""
        for text in list(islice(self.by_name, _LOOKED_AT)):
            total = self.by_name.pop(text)
            name = self.names.get(text)
            if name is None or name.owner is None:
                return True
            self.by_name[text] = total
        return False
