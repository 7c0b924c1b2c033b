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

from .constants import align8
from .errors import KdbusError


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
        data = self.bytes
        for part in parts:
            end = offset + len(part)
            data[offset:end] = part
            offset = end

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.bytes[offset : offset + size])

    def close(self) -> None:
        self.bytes = bytearray()


class Slice:
    """A part of a pool. `accounted`: part of the incoming half."""

    __slots__ = (
        "accounted", "by_bus", "by_owner", "following", "free", "offset", "previous", "size",
    )  # fmt: skip

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self.free = True
        self.accounted = False
        self.by_bus = False
        self.by_owner = False
        self.previous: Slice | None = None
        self.following: Slice | None = None


class Pool:
    """The slices of one pool; `memory` holds the bytes."""

    def __init__(self, size: int, memory: Any) -> None:
        self.size = size
        self.memory = memory
        self.accounted = 0
        first = Slice(0, size)
        self.busy: dict[int, Slice] = {}
        self.unused: dict[int, Slice] = {0: first}
        # Free slices by size: the smallest that is large enough is taken.
        self.by_size: list[tuple[int, int]] = [(size, 0)]

    def alloc(self, size: int, accounted: bool) -> Slice:
        """A slice held by the bus; EXFULL where none is large enough."""
        size = align8(size)
        at = bisect_left(self.by_size, (size, -1))
        if size == 0 or at == len(self.by_size):
            raise KdbusError(errno.EXFULL)
        _, offset = self.by_size.pop(at)
        found = self.unused.pop(offset)
        if found.size > size:
            rest = Slice(offset + size, found.size - size)
            rest.previous = found
            rest.following = found.following
            if rest.following is not None:
                rest.following.previous = rest
            found.following = rest
            found.size = size
            self.put_free(rest)
        found.free = False
        found.by_bus = True
        found.accounted = accounted
        if accounted:
            self.accounted += size
        self.busy[offset] = found
        return found

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
        if offset == self.size:
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

    def put_free(self, part: Slice) -> None:
        part.free = True
        self.unused[part.offset] = part
        insort(self.by_size, (part.size, part.offset))

    def take_free(self, part: Slice) -> None:
        del self.unused[part.offset]
        del self.by_size[bisect_left(self.by_size, (part.size, part.offset))]

    def give_back(self, part: Slice) -> None:
        del self.busy[part.offset]
        after = part.following
        if after is not None and after.free:
            self.take_free(after)
            part.size += after.size
            part.following = after.following
            if part.following is not None:
                part.following.previous = part
        before = part.previous
        if before is not None and before.free:
            self.take_free(before)
            before.size += part.size
            before.following = part.following
            if before.following is not None:
                before.following.previous = before
            part = before
        self.put_free(part)

    def store(self, parts: list[Any], size: int) -> Slice:
        """A slice of the owner's half with these bytes in it."""
        part = self.alloc(size, False)
        self.memory.write(part.offset, parts)
        return part
