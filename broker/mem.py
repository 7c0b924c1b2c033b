"""Memory: the few places where the core touches raw bytes - the plain Python twin of `mem.pyx`.

Invariant: same names, same meaning as the compiled module. A "pointer" is here an object
that can be indexed and sliced (bytes or bytearray); containers keep the same interface.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

COMPILED = False

_MASK = 0xFFFFFFFFFFFFFFFF


def load32(p: Sequence[int], off: int, big: bool) -> int:
    return int.from_bytes(bytes(p[off : off + 4]), "big" if big else "little")


def store32(p: bytearray, off: int, value: int, big: bool) -> None:
    p[off : off + 4] = value.to_bytes(4, "big" if big else "little")


def copy(dst: bytearray, doff: int, src: bytes | bytearray, soff: int, n: int) -> None:
    dst[doff : doff + n] = src[soff : soff + n]


def zero(dst: bytearray, off: int, n: int) -> None:
    dst[off : off + n] = bytes(n)


def all_zero(p: bytes | bytearray, off: int, n: int) -> bool:
    return not any(p[off : off + n])


def utf8_ok(p: bytes | bytearray, off: int, n: int) -> bool:
    """True for UTF-8 as the specification wants it: no NUL, no surrogate, shortest form."""
    part = p[off : off + n]
    if 0 in part:
        return False
    try:
        part.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def bools_ok(p: bytes | bytearray, off: int, n: int, big: bool) -> bool:
    return all(load32(p, i, big) <= 1 for i in range(off, off + n, 4))


def take(p: bytes | bytearray, off: int, n: int) -> bytes:
    return bytes(p[off : off + n])


def same(p: bytes | bytearray, off: int, n: int, text: bytes) -> bool:
    return n == len(text) and p[off : off + n] == text


def mix(a: int, b: int) -> int:
    return hash((a, b)) & _MASK


def hash64(p: bytes | bytearray, off: int, n: int) -> int:
    return hash(bytes(p[off : off + n])) & _MASK


def view(p: bytes | bytearray, off: int, n: int) -> bytes:
    return bytes(p[off : off + n])


def of_bytes(data: bytes) -> bytes:
    return data


def int_array(n: int) -> list[int]:
    return [0] * n


def free_ints(p: list[int]) -> None:
    pass


class Buffer:
    """Bytes between `head` and `end` of a block that grows and is given back when empty."""

    __slots__ = ("cap", "end", "head", "p")

    def __init__(self) -> None:
        self.p = bytearray()
        self.head = 0
        self.end = 0
        self.cap = 0

    def __len__(self) -> int:
        return self.end - self.head

    def __bytes__(self) -> bytes:
        return bytes(self.p[self.head : self.end])

    def reserve(self, n: int) -> int:
        """Makes room for `n` bytes behind `end`; may move the bytes to the block's start."""
        if self.cap - self.end >= n:
            return 0
        if self.head:
            del self.p[: self.head]
            self.end -= self.head
            self.head = 0
        cap = max(self.cap * 2 if self.cap else 512, self.end + n)
        self.p.extend(bytes(cap - len(self.p)))
        self.cap = cap
        return 0

    def append(self, src: bytes | bytearray, off: int, n: int) -> int:
        self.reserve(n)
        self.p[self.end : self.end + n] = src[off : off + n]
        self.end += n
        return 0

    def drop(self) -> None:
        """Gives the block back."""
        self.p = bytearray()
        self.head = self.end = self.cap = 0

    def add(self, data: bytes) -> None:
        """append() for Python callers."""
        self.append(data, 0, len(data))


_spares: list[Buffer] = []
_MAX_SPARES = 128
_SPARE = 32768


def borrow() -> Buffer:
    """An empty buffer, which may have room already; give it back with `give()`."""
    return _spares.pop() if _spares else Buffer()


def give(buffer: Buffer) -> None:
    """Takes a borrowed buffer back, with nothing in it that anybody needs."""
    if buffer.cap <= _SPARE and len(_spares) < _MAX_SPARES:
        buffer.head = buffer.end = 0
        _spares.append(buffer)


def pooled() -> int:
    """Bytes that wait to be used again."""
    return sum(buffer.cap for buffer in _spares)


def trim() -> bool:
    """Gives back what is not in use; True if some is left to look at again."""
    _spares.clear()
    return False


class Ring:
    """First in, first out: what each queued message is charged to, and since when it waits."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: deque[list[int]] = deque()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def count(self) -> int:
        return len(self.slots)

    def push(self, size: int, fds: int, tally: int, when: int) -> int:
        self.slots.append([size, size, fds, tally, when])
        return 0

    def take_left(self, n: int) -> int:
        """Takes up to n bytes off the first message; what is left of n, -1 if it is not done."""
        slot = self.slots[0]
        if n < slot[0]:
            slot[0] -= n
            return -1
        return n - slot[0]

    def front_size(self) -> int:
        return self.slots[0][1]

    def front_fds(self) -> int:
        return self.slots[0][2]

    def front_tally(self) -> int:
        return self.slots[0][3]

    def front_when(self) -> int:
        return self.slots[0][4]

    def pop(self) -> None:
        self.slots.popleft()

    def items(self) -> list[tuple[int, int, int]]:
        """(size, fds, tally) of each message, oldest first."""
        return [(size, fds, tally) for _, size, fds, tally, _ in self.slots]

    def entries(self) -> list[tuple[int, int, int, int, int]]:
        """(bytes left, size, fds, tally, when) of each message, oldest first."""
        return [(left, size, fds, tally, when) for left, size, fds, tally, when in self.slots]


class Map64:
    """64-bit key to object."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def used(self) -> int:
        return len(self.slots)

    def get(self, key: int) -> Any:
        return self.slots.get(key)

    def put(self, key: int, value: Any) -> int:
        self.slots[key] = value
        return 0

    def pop(self, key: int) -> Any:
        return self.slots.pop(key, None)

    def values(self) -> Iterable[Any]:
        return list(self.slots.values())

    def keys(self) -> list[int]:
        return list(self.slots)
