"""Queue: messages that are in a connection's pool and were not received yet.

Invariant: an entry is in the queue from `add()` to `remove()`; `first()` is the oldest, or with a
priority the oldest of the most urgent ones (lowest number). The slice of an entry is the bus's as
long as it is queued, and its size and descriptors are charged to the sending user.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from .pool import Slice


class Hanging:
    """The awaited answer to a message, as far as that has to do with its place in a queue."""

    __slots__ = ("queued",)

    def settle(self) -> None:
        """To be called when it is no longer linked or queued."""


@cython.freelist(64)
@cython.cclass
class Entry:
    """One queued message. `fds`: what is to be installed at the `patches`, of which `n_fds` are
    charged; `name`: the registry's entry that it was sent to; `kept`: the message itself, where it
    may have to move to another connection; `reply`: the answer that is awaited."""

    __slots__ = (
        "fds", "kept", "n_fds", "name", "patches", "priority", "reply", "size", "slice", "user",
    )  # fmt: skip

    slice: Slice
    size: int
    priority: int
    user: Any
    fds: Any
    patches: list[int]
    reply: Any
    name: Any
    kept: Any
    n_fds: int


def new_entry(part: Slice, priority: int, user: Any, fds: Any, patches: list[int]) -> Entry:
    made = Entry.__new__(Entry)
    made.slice = part
    made.size = part.size
    made.priority = priority
    made.user = user
    made.fds = fds
    made.patches = patches
    made.reply = None
    made.name = None
    made.kept = None
    made.n_fds = 0
    return made


def by_urgency(entries: dict[int, Entry]) -> list[tuple[int, int, Entry]]:
    return sorted((entry.priority, number, entry) for number, entry in entries.items())


class Queue:
    """First come, first served, with a view by priority."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        # Made when somebody first asks by priority.
        self.urgent: list[tuple[int, int, Entry]] | None = None
        self.last = 0

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: Entry) -> None:
        self.last += 1
        self.entries[self.last] = entry
        if self.urgent is not None:
            heappush(self.urgent, (entry.priority, self.last, entry))

    def first(self, priority: int | None) -> tuple[int, Entry] | None:
        """(its number, the entry); with a priority only one that is at least that urgent."""
        if not self.entries:
            return None
        if priority is None:
            number = next(iter(self.entries))
            return number, self.entries[number]
        if self.urgent is None:
            self.urgent = by_urgency(self.entries)
        while self.urgent[0][1] not in self.entries:
            heappop(self.urgent)
        level, number, entry = self.urgent[0]
        return None if level > priority else (number, entry)

    def pop(self) -> Entry:
        """The oldest one, which there has to be, and takes it out."""
        entry = None
        for number in self.entries:
            entry = self.entries[number]
            del self.entries[number]
            break
        if self.urgent is not None:
            self.tidy()
        return entry  # type: ignore[return-value]

    def remove(self, number: int) -> Entry:
        entry = self.entries.pop(number)
        if self.urgent is not None:
            self.tidy()
        return entry

    def tidy(self) -> None:
        """Of those that were taken out, not too many stay in the view."""
        assert self.urgent is not None
        if not self.entries:
            self.urgent.clear()
        elif len(self.urgent) > 2 * len(self.entries) + 64:
            self.urgent = by_urgency(self.entries)
