# cython: infer_types=True
"""Calls: which replies are awaited, in memory that outlives the process.

Invariant: of each call that has a place, the cells say who awaits whose reply to which serial, and
whether all that belongs to it has been written to the sockets: what happened in a round before the
last one that was flushed, has been. A place is used again when that is so and the reply has come.
A call for which there was no place is one that nobody will be told of.

Cells are 64 bits wide, in the machine's order. The first counts the rounds that were flushed, the
second those who have been read from since, whose numbers follow: what they said may be lost. From
_FIRST on there are _WIDTH for each place: caller, callee, serial with what became of it above
(AWAITED, OVER), and the round in which that was. Only a bus with a store has this.
"""

from __future__ import annotations

import mmap
import os
import tempfile

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.replies import Replies, Slot

from ..front import Front
from ..hub import Hub
from ..peer import Peer

PLACES = 16384
AWAITED, OVER = 1, 2
READERS = 1022
_FIRST, _WIDTH = 2 + READERS, 4
_TRIES = 64
_SERIAL = 0xFFFFFFFF

Call = tuple[int, int, int, bool]
"""Caller, callee, serial, and whether the call has been written and its reply has not come; if not,
nobody can say how far either of them got."""


def nameless(what: str) -> int:
    """A file in memory; before Linux 3.17 any file, if it has no name any more."""
    try:
        return os.memfd_create(what, os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


class KeptSlot(Slot):
    """`place`: where its cells begin; 0 if it has none."""

    def __init__(self) -> None:
        Slot.__init__(self)
        self.place = 0


class KeptReplies(Replies):
    """Replies that are noted in the cells of `fd`, as they are awaited and as they come."""

    def __init__(self) -> None:
        Replies.__init__(self)
        size = 8 * (_FIRST + _WIDTH * PLACES)
        self.fd = nameless("jitney-calls")
        os.truncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size)
        self.cells = memoryview(self.memory).cast("Q")
        self.next_place = 0

    def expect(
        self, caller: Connection, callee: Connection, serial: int, deadline: float, since: int
    ) -> bool:
        if self.spare is None:
            # What it takes is one of ours, always.
            self.spare = KeptSlot()
            self.n_spare += 1
        if not Replies.expect(self, caller, callee, serial, deadline, since):
            return False
        slot = callee.owes
        slot.place = at = self.room()  # type: ignore[union-attr]
        if at:
            cells = self.cells
            cells[at + 2] = 0
            cells[at] = caller.id
            cells[at + 1] = callee.id
            cells[at + 3] = cells[0]
            cells[at + 2] = serial | AWAITED << 32
        return True

    def end(self, slot: Slot) -> None:
        kept: KeptSlot = slot  # type: ignore[assignment]
        at = kept.place
        if at:
            cells = self.cells
            # In this order: in between it is one that began now, of which nobody is sure either.
            cells[at + 3] = cells[0]
            cells[at + 2] = slot.serial | OVER << 32
        Replies.end(self, slot)

    def room(self) -> int:
        """Where the cells of a place begin that nobody needs; 0 if none is found soon."""
        cells = self.cells
        for _ in range(_TRIES):
            at = _FIRST + _WIDTH * self.next_place
            self.next_place = (self.next_place + 1) % PLACES
            how = cells[at + 2] >> 32
            if how == 0 or (how == OVER and cells[at + 3] < cells[0]):
                return at
        return 0

    def flushed(self) -> None:
        """All that was noted so far has been written, or its receiver waits for room."""
        self.cells[0] += 1
        self.cells[1] = 0

    def reading(self, number: int) -> None:
        """What this connection says is about to leave its socket."""
        count = self.cells[1]
        if count < READERS:
            self.cells[2 + count] = number
        self.cells[1] = count + 1

    def install(self, bus: Bus) -> None:
        """Be the replies of a bus on which nobody is yet."""
        bus.replies = self


class KeptHub(Hub):
    """A hub that says when a round is over; whoever makes it sets `calls`."""

    def __init__(self, bus: Bus, front: Front) -> None:
        self.calls: KeptReplies | None = None
        Hub.__init__(self, bus, front)

    def read(self, peer: Peer) -> None:
        self.settle()
        if self.calls is not None:
            self.calls.reading(peer.conn.id)  # type: ignore[union-attr]
        Hub.read(self, peer)

    def flush(self) -> None:
        Hub.flush(self)
        if self.calls is not None:
            self.calls.flushed()


def read(fd: int) -> list[Call]:
    """The calls that were under way when the process was killed that wrote these cells."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    cells = memoryview(data[: size - size % 8]).cast("Q")
    count = cells[1]
    read_from = set(cells[2 : 2 + min(count, READERS)])
    found = []
    for at in range(_FIRST, len(cells) - _WIDTH + 1, _WIDTH):
        how = cells[at + 2] >> 32
        sure = cells[at + 3] < cells[0]
        if how == AWAITED and (count > READERS or cells[at + 1] in read_from):
            sure = False
        if how == AWAITED or (how == OVER and not sure):
            found.append((cells[at], cells[at + 1], cells[at + 2] & _SERIAL, sure))
    return found
