"""Envelope: a message's head and items, as they are sent and as they are found in a pool.

Invariant: `parse()` of what `pack()` made is equal to it. Nothing here knows where bytes of payload
are kept: what is sent says where the bus finds them, what came says where in the slice they are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Self

from jitney.broker.kdbus import constants as c
from jitney.kdbus import uapi

from . import items
from .frames import FormatError

HEAD = uapi.MESSAGE
VEC = uapi.VEC
MEMFD = uapi.MEMFD
_FD = struct.Struct("<i")
NONE64 = c.NONE64


@dataclass(frozen=True, slots=True)
class Vec:
    """Bytes to send: where the bus finds them; 0 for zeros."""

    size: int
    address: int

    def pack(self) -> bytes:
        return items.pack(c.ITEM_PAYLOAD_VEC, VEC.pack(self.size, self.address))


@dataclass(frozen=True, slots=True)
class Off:
    """Bytes that came: where they are, counted from the message; ~0 for zeros."""

    size: int
    offset: int

    def pack(self) -> bytes:
        return items.pack(c.ITEM_PAYLOAD_OFF, VEC.pack(self.size, self.offset))


@dataclass(frozen=True, slots=True)
class InMemfd:
    """Bytes in a sealed memfd. `fd`: its place among the descriptors, -1 if it did not come."""

    start: int
    size: int
    fd: int

    def pack(self) -> bytes:
        return items.pack(c.ITEM_PAYLOAD_MEMFD, MEMFD.pack(self.start, self.size, self.fd, 0))


Part = Vec | Off | InMemfd


@dataclass(slots=True)
class Envelope:
    """What is written on a message (kdbus.message(7)).

    `timeout`: the deadline of a call, in nanoseconds of CLOCK_MONOTONIC, or the cookie of the call
    that this answers. `bloom`: (generation, bits) of a signal. `fds`: places in the list of
    descriptors, -1 for one that did not come. `others`: (type, bytes) of all other items."""

    dst: int
    flags: int = 0
    cookie: int = 0
    timeout: int = 0
    priority: int = 0
    payload_type: int = 0
    src: int = 0
    name: bytes | None = None
    bloom: tuple[int, bytes] | None = None
    parts: list[Part] = field(default_factory=list)
    fds: tuple[int, ...] = ()
    others: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Of what `pack()` makes, in bytes."""
        size = HEAD.size
        for part in self.parts:
            size += 40 if isinstance(part, InMemfd) else 32
        if self.fds:
            size += 16 + 4 * len(self.fds) + 7 & ~7
        if self.bloom is not None:
            size += 24 + len(self.bloom[1]) + 7 & ~7
        if self.name is not None:
            size += 16 + len(self.name) + 8 & ~7
        for _, data in self.others:
            size += 16 + len(data) + 7 & ~7
        return size

    def pack(self) -> bytes:
        out = [b""]
        if self.name is not None:
            out.append(items.text(c.ITEM_DST_NAME, self.name))
        if self.bloom is not None:
            generation, bits = self.bloom
            out.append(items.pack(c.ITEM_BLOOM_FILTER, struct.pack("<Q", generation) + bits))
        for part in self.parts:
            out.append(part.pack())
        if self.fds:
            out.append(items.pack(c.ITEM_FDS, struct.pack(f"<{len(self.fds)}i", *self.fds)))
        for kind, data in self.others:
            out.append(items.pack(kind, data))
        out[0] = HEAD.pack(
            HEAD.size + sum(map(len, out)),
            self.flags,
            self.priority,
            self.dst,
            self.src,
            self.payload_type,
            self.cookie,
            self.timeout,
        )
        return b"".join(out)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """A message from its first byte on, with or without what follows; FormatError."""
        if len(data) < HEAD.size:
            raise FormatError("a message without a head")
        size, flags, priority, dst, src, kind, cookie, timeout = HEAD.unpack_from(data)
        if not HEAD.size <= size <= len(data):
            raise FormatError("a message of another length than it says")
        made = cls(dst, flags, cookie, timeout, priority, kind, src)
        for item, at, length in items.walk(data[:size], HEAD.size):
            made.take(item, data, at, length)
        return made

    def take(self, kind: int, data: bytes | memoryview, at: int, size: int) -> None:
        if kind == c.ITEM_PAYLOAD_OFF or kind == c.ITEM_PAYLOAD_VEC:
            if size != VEC.size:
                raise FormatError("payload without a place")
            length, where = VEC.unpack_from(data, at)
            self.parts.append(
                Off(length, where) if kind == c.ITEM_PAYLOAD_OFF else Vec(length, where)
            )
        elif kind == c.ITEM_PAYLOAD_MEMFD:
            if size != MEMFD.size:
                raise FormatError("a memfd without a place")
            start, length, fd, _ = MEMFD.unpack_from(data, at)
            self.parts.append(InMemfd(start, length, fd))
        elif kind == c.ITEM_FDS:
            self.fds = struct.unpack_from(f"<{size // 4}i", data, at)
        elif kind == c.ITEM_BLOOM_FILTER:
            if size < 8:
                raise FormatError("a bloom filter without a generation")
            generation = struct.unpack_from("<Q", data, at)[0]
            self.bloom = (generation, bytes(data[at + 8 : at + size]))
        elif kind == c.ITEM_DST_NAME:
            self.name = bytes(data[at : at + size]).rstrip(b"\0")
        else:
            self.others.append((kind, bytes(data[at : at + size])))
