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

from .area import Area
from .constants import align8
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
        self.bytes = bytearray(size)

    def write(self, offset: int, parts: Iterable[Any]) -> None:
        put(self.bytes, offset, parts)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.bytes[offset : offset + size])

    def whole(self) -> Any:
        """What can be written to directly; None where that is not so."""
        return self.bytes

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
        self.area: Area | None = None
        self.accounted = 0
        first = Slice(0, size)
        self.busy: dict[int, Slice] = {}
        self.unused: dict[int, Slice] = {0: first}
        # Free slices by size: the smallest that is large enough is taken.
        self.by_size: list[tuple[int, int]] = [(size, 0)]

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
        size = align8(size)
        at = bisect_left(self.by_size, (size, -1))
        if size == 0 or at == len(self.by_size):
            raise KdbusError(errno.EXFULL)
        _, offset = self.by_size.pop(at)
        found = self.unused.pop(offset)
        if found.size > size:
            rest = Slice(offset + size, found.size - size)
            rest.previous = found
            following = found.following
            rest.following = following
            if following is not None:
                following.previous = rest
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
            following = after.following
            part.following = following
            if following is not None:
                following.previous = part
        before = part.previous
        if before is not None and before.free:
            self.take_free(before)
            before.size += part.size
            following = part.following
            before.following = following
            if following is not None:
                following.previous = before
            part = before
        self.put_free(part)

    def store(self, parts: list[Any], size: int) -> Slice:
        """A slice of the owner's half with these bytes in it."""
        part = self.alloc(size, False)
        self.memory.write(part.offset, parts)
        return part
