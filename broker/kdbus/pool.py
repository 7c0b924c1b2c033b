"""Pool: the memory of one connection, in which it finds what was sent to it.

Invariant: slices cover the pool without gaps, and no two neighbours are both free. A slice is
busy while the bus or the owner holds it: the bus until the message left the queue, the owner from
`publish()` to `free()`. Nothing is ever read back to decide something: what a pool holds may have
been written to by its owner, all books are kept here.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from .area import Area
from .errors import KdbusError


def put(data: Any, offset: int, parts: Iterable[Any]) -> None:
    """Writes one part after the other; one that is not bytes knows how to get there, `into()`."""
    for part in parts:
        end = offset + len(part)
        if hasattr(part, "into"):
            part.into(data, offset)
        else:
            data[offset:end] = part
        offset = end


class PlainMemory:
    """Memory that nobody maps: for tests, and for whoever sends the bytes another way.

    `trusted`: nobody but the bus can write to it, so it still holds what the bus wrote."""

    trusted = True

    def __init__(self, size: int) -> None:
        try:
            self.bytes = bytearray(size)
        except (MemoryError, OverflowError):
            raise KdbusError(errno.ENOMEM) from None

    def write(self, offset: int, parts: Iterable[Any]) -> None:
        put(self.bytes, offset, parts)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.bytes[offset : offset + size])

    def whole(self) -> Any:
        """What can be written to directly; None where that is not so."""
        return self.bytes

    def close(self) -> None:
        self.bytes = bytearray()


@cython.freelist(64)
@cython.cclass
class Slice:
    """A part of a pool. `accounted`: part of the incoming half."""

    __slots__ = (
        "accounted", "by_bus", "by_owner", "following", "free", "offset", "previous", "size",
    )  # fmt: skip

    offset: int
    size: int
    free: bool
    accounted: bool
    by_bus: bool
    by_owner: bool
    previous: Slice | None
    following: Slice | None


def new_slice(offset: int, size: int) -> Slice:
    """A free one, without neighbours."""
    made = Slice.__new__(Slice)
    made.offset = offset
    made.size = size
    made.free = True
    made.accounted = False
    made.by_bus = False
    made.by_owner = False
    made.previous = None
    made.following = None
    return made


def tie(before: Slice | None, after: Slice | None) -> None:
    """They are neighbours from now on; None is either end of the pool."""
    if before is not None:
        before.following = after
    if after is not None:
        after.previous = before


def leave(part: Slice) -> None:
    """It is no part of the row any more."""
    tie(part.previous, part.following)
    part.previous = part.following = None


class Pool:
    """The slices of one pool; `memory` holds the bytes. `top` is the free slice at its end, if
    there is one: most come from there and go back to it, and it is on no list."""

    def __init__(self, size: int, memory: Any) -> None:
        self.size = size
        self.memory = memory
        self.area: Area | None = None
        self.accounted = 0
        self.top: Slice | None = new_slice(0, size)
        self.busy: dict[int, Slice] = {}
        # Free ones before it, and in order of size: the smallest that is large enough is taken.
        self.holes: dict[int, Slice] = {}
        self.sizes: list[tuple[int, int]] = []

    def writable(self) -> Area | None:
        """The memory itself, if it can be had; until `close()`."""
        if self.area is None:
            whole = getattr(self.memory, "whole", lambda: None)()
            if whole is not None:
                self.area = Area(whole)
        return self.area

    def close(self) -> None:
        """Nobody looks into it any more."""
        if self.area is not None:
            self.area.release()
            self.area = None
        self.memory.close()

    def alloc(self, size: int, accounted: bool) -> Slice:
        """A slice held by the bus; EXFULL where none is large enough."""
        size = (size + 7) & ~7
        found = self.top
        if self.sizes or found is None or found.size < size or size <= 0:
            found = self.hole(size)
        if found.size > size:
            found = self.split(found, size)
        elif found is self.top:
            self.top = None
        found.free = False
        found.by_bus = True
        found.accounted = accounted
        if accounted:
            self.accounted += size
        self.busy[found.offset] = found
        return found

    def hole(self, size: int) -> Slice:
        """The free slice to take it from, on no list any more."""
        top = self.top
        at = bisect_left(self.sizes, (size, -1))
        if size > 0 and at < len(self.sizes):
            least, offset = self.sizes[at]
            if top is None or top.size < size or least <= top.size:
                del self.sizes[at]
                return self.holes.pop(offset)
        if size <= 0 or top is None or top.size < size:
            raise KdbusError(errno.EXFULL)
        return top

    def split(self, part: Slice, size: int) -> Slice:
        """The first so many bytes of it; the rest is free."""
        if part is self.top:
            # It stays what it is and becomes smaller.
            found = new_slice(part.offset, size)
            tie(part.previous, found)
            tie(found, part)
            part.offset += size
            part.size -= size
            return found
        rest = new_slice(part.offset + size, part.size - size)
        tie(rest, part.following)
        tie(part, rest)
        part.size = size
        self.put_free(rest)
        return part

    def publish(self, part: Slice) -> tuple[int, int]:
        """The owner is told where it is, and has it until it frees it: (offset, size)."""
        part.by_owner = True
        return part.offset, part.size

    def release(self, part: Slice) -> None:
        """The bus has no more to do with it."""
        part.by_bus = False
        if part.accounted:
            part.accounted = False
            self.accounted -= part.size
        if not part.by_owner:
            self.give_back(part)

    def free(self, offset: int) -> None:
        """The owner has no more to do with it. ENXIO for what was not published."""
        end = self.size
        if offset == end:
            return  # stands for "nothing", see `empty`
        part = self.busy.get(offset)
        if part is None or not part.by_owner:
            raise KdbusError(errno.ENXIO)
        part.by_owner = False
        if not part.by_bus:
            self.give_back(part)

    @property
    def empty(self) -> int:
        """The offset of what has no bytes."""
        return self.size

    @property
    def unused(self) -> dict[int, Slice]:
        """All free slices by where they are, for who looks on."""
        top = self.top
        return self.holes if top is None else {**self.holes, top.offset: top}

    def put_free(self, part: Slice) -> None:
        part.free = True
        if part.following is None:
            self.top = part
            return
        self.holes[part.offset] = part
        insort(self.sizes, (part.size, part.offset))

    def take_free(self, part: Slice) -> None:
        del self.holes[part.offset]
        del self.sizes[bisect_left(self.sizes, (part.size, part.offset))]

    def give_back(self, part: Slice) -> None:
        del self.busy[part.offset]
        before = part.previous
        if before is not None and before.free:
            self.take_free(before)
            part.offset = before.offset
            part.size += before.size
            leave(before)
        after = part.following
        if after is None or not after.free:
            self.put_free(part)
        elif after is self.top:
            after.offset = part.offset
            after.size += part.size
            leave(part)
        else:
            self.take_free(after)
            part.size += after.size
            leave(after)
            self.put_free(part)

    def store(self, parts: list[Any], size: int) -> Slice:
        """A slice of the owner's half with these bytes in it."""
        part = self.alloc(size, False)
        self.memory.write(part.offset, parts)
        return part
