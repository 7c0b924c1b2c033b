"""Area: a pool's memory, for whoever writes messages into it; the plain twin of `area.pyx`.

Invariant: nothing is written outside of it, nor after `release()`.
"""

from __future__ import annotations

from typing import Any


class Area:
    """Over any memory that can be written to; what it is over cannot be closed before it is."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.held = memoryview(memory)
        self.size = len(self.held)

    def release(self) -> None:
        self.size = 0
        self.held.release()
        self.memory = None

    def put64(self, at: int, value: int) -> None:
        if at < 0 or at > self.size - 8:
            raise IndexError("outside of the pool")
        # In C a negative one is this as well.
        self.held[at : at + 8] = (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")

    def put(self, at: int, data: Any) -> int:
        """Writes any bytes; how many. What is not bytes knows how to get there, `into()`."""
        n = len(data)
        if at < 0 or at > self.size - n:
            raise IndexError("outside of the pool")
        if hasattr(data, "into"):
            data.into(self.memory, at)
        else:
            self.held[at : at + n] = data
        return n

    def copy(self, at: int, data: bytearray, start: int, n: int) -> int:
        """Writes `data[start : start + n]`, without a view of it."""
        if n < 0 or at < 0 or at > self.size - n or start < 0 or start > len(data) - n:
            raise IndexError("outside of the pool")
        self.held[at : at + n] = data[start : start + n]
        return n

    def zero(self, at: int, n: int) -> None:
        if at < 0 or n < 0 or at > self.size - n:
            raise IndexError("outside of the pool")
        self.held[at : at + n] = bytes(n)
