# cython: infer_types=True
"""Replies: which connection owes whom an answer (kdbus: the reply cookie).

Invariant: a slot stands for one call that was delivered and asked for an answer; it is
found by (caller, callee, serial) in constant time, hangs in the callee's chain so that a
vanishing callee finds its callers, and in the deadline chain if there is a time limit. It
ends exactly once: by the reply, the deadline, or the end of either side. Slots are reused.
"""

from __future__ import annotations

from .connection import Connection
from .mem import Map64


class Slot:
    """One awaited reply. `deadline` in seconds of the bus's clock, 0 for none; `since`: when it was
    asked for, by `Accounts.moment`."""

    def __init__(self) -> None:
        self.caller: Connection | None = None
        self.callee: Connection | None = None
        self.serial = 0
        self.deadline = 0.0
        self.since = 0
        self.prev: Slot | None = None
        self.next: Slot | None = None
        self.earlier: Slot | None = None
        self.later: Slot | None = None

    def of(self, caller: Connection, callee: Connection, serial: int) -> bool:
        """Whether it is, still, the slot of this call."""
        return self.caller is caller and self.callee is callee and self.serial == serial


class Replies:
    """All awaited replies of a bus."""

    def __init__(self) -> None:
        self.spare: Slot | None = None
        self.n_spare = 0
        self.first: Slot | None = None
        self.last: Slot | None = None
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def expect(
        self, caller: Connection, callee: Connection, serial: int, deadline: float, since: int
    ) -> bool:
        """Notes that `callee` owes `caller` a reply; False if that one is awaited already."""
        key = (callee.id << 32) | serial
        if caller.calls is None:
            caller.calls = Map64()
        elif caller.calls.get(key) is not None:
            return False
        slot = self.spare
        if slot is None:
            slot = Slot()
            caller.calls.put(key, slot)
        else:
            caller.calls.put(key, slot)
            self.spare = slot.next
            self.n_spare -= 1
        # From here on nothing asks for memory.
        slot.caller = caller
        slot.callee = callee
        slot.serial = serial
        slot.deadline = deadline
        slot.since = since
        slot.prev = None
        slot.next = callee.owes
        if slot.next is not None:
            slot.next.prev = slot
        else:
            callee.owes_first = slot
        callee.owes = slot
        callee.n_owes += 1
        if deadline > 0:
            # One timeout for the whole bus: the chain is in order of deadlines by itself.
            slot.earlier = self.last
            slot.later = None
            if self.last is None:
                self.first = slot
            else:
                self.last.later = slot
            self.last = slot
        caller.n_calls += 1
        caller.user.replies += 1
        self.count += 1
        return True

    def find(self, caller: Connection, callee: Connection, serial: int) -> Slot | None:
        """The slot of the reply that `callee` owes `caller` for `serial`."""
        if caller.n_calls == 0:
            return None
        slot = caller.calls.get((callee.id << 32) | serial)
        if slot is not None and slot.callee is callee:
            return slot
        return None

    def end(self, slot: Slot) -> None:
        """The reply came, or nobody waits for it any more."""
        caller = slot.caller
        caller.calls.pop((slot.callee.id << 32) | slot.serial)
        caller.n_calls -= 1
        caller.user.replies -= 1
        self.count -= 1
        if slot.prev is None:
            slot.callee.owes = slot.next
        else:
            slot.prev.next = slot.next
        if slot.next is not None:
            slot.next.prev = slot.prev
        else:
            slot.callee.owes_first = slot.prev
        slot.callee.n_owes -= 1
        if slot.deadline > 0:
            if slot.earlier is None:
                self.first = slot.later
            else:
                slot.earlier.later = slot.later
            if slot.later is None:
                self.last = slot.earlier
            else:
                slot.later.earlier = slot.earlier
            slot.earlier = slot.later = None
        slot.caller = None
        slot.callee = None
        slot.prev = None
        if self.n_spare < 256:
            slot.next = self.spare
            self.spare = slot
            self.n_spare += 1
        else:
            slot.next = None

    def give_up(self, caller: Connection, callee: Connection, serial: int) -> bool:
        """Ends the slot of a call that no reply will come to; whether there was one."""
        slot = self.find(caller, callee, serial)
        if slot is None:
            return False
        self.end(slot)
        return True

    def drop_caller(self, conn: Connection) -> None:
        """Nobody is left to receive what `conn` waited for."""
        if conn.calls is not None:
            for slot in conn.calls.values():
                self.end(slot)

    def owed_by(self, conn: Connection) -> list[tuple[Connection, int]]:
        """Ends every slot that `conn` was to answer; (caller, serial) of each, latest first."""
        out: list[tuple[Connection, int]] = []
        while conn.owes is not None:
            slot = conn.owes
            out.append((slot.caller, slot.serial))
            self.end(slot)
        return out

    def expired(self, now: float) -> list[tuple[Connection, int]]:
        """Ends every slot whose deadline has passed; (caller, serial) of each."""
        out: list[tuple[Connection, int]] = []
        while self.first is not None and self.first.deadline <= now:
            slot = self.first
            out.append((slot.caller, slot.serial))
            self.end(slot)
        return out

    def next_deadline(self) -> float:
        """When `expired()` has something to do next; 0 for never."""
        return self.first.deadline if self.first is not None else 0.0

    # For those who look

    def oldest_owed(self, conn: Connection) -> int:
        """Since when somebody waits for `conn` to reply; 0 if nobody does."""
        slot = conn.owes_first
        return slot.since if slot is not None else 0

    def owed(self, conn: Connection, limit: int) -> list[tuple[Connection, int, int]]:
        """(caller, serial, since) of the calls that `conn` is to answer, the first `limit`."""
        out: list[tuple[Connection, int, int]] = []
        slot = conn.owes_first
        while slot is not None and len(out) < limit:
            out.append((slot.caller, slot.serial, slot.since))
            slot = slot.prev
        return out

    def awaited(self, conn: Connection, limit: int) -> list[tuple[Connection, int, int]]:
        """(callee, serial, since) of calls that `conn` waits for, `limit` of them."""
        out: list[tuple[Connection, int, int]] = []
        if conn.calls is not None:
            for slot in conn.calls.values():
                if len(out) == limit:
                    break
                out.append((slot.callee, slot.serial, slot.since))
        return out
