"""Frames: what goes over the socket, as bytes and back (docs/native.md); no socket is in here.

Invariant: `parse()` of what `pack()` made is equal to it, and `parse()` takes nothing that is
longer or shorter than it says of itself. All sizes are bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from jitney.broker.kdbus import constants as c
from jitney.kdbus import uapi

HEAD = struct.Struct("<IHHIIII")
INFO = struct.Struct("<4Q")

LENGTH_MAX = 64 * 1024
FDS_MAX = 253
FREES_MAX = CREDIT_MAX = 1024

QUIET = 1

# Operations beside kdbus's.
OPEN, ATTACH, OUTBOX, NUMBERS, WOKEN, CANCEL, GRANT, POOL = range(0x100, 0x108)
ANSWER = 0x8000
WAKE, MESSAGE = 0x8200, 0x8201
UNANSWERED = frozenset((WOKEN, CANCEL, GRANT))

IN_OUTBOX = 1 << 63
"""Added to a place in the outbox, where a place in the frame could stand."""

OPS = {name: form.ioctl & 0xFF for name, form in uapi.BY_NAME.items()}
SIZES = {name: form.size for name, form in uapi.BY_NAME.items()}


class FormatError(ValueError):
    """Bytes that are no frame, item or message; the text says what is wrong."""


@dataclass(slots=True)
class Request:
    """A command on its way to the bus. `body`: the command's struct with its items and what
    follows, `frees`: offsets of slices in the pool that are done with."""

    op: int
    serial: int
    body: bytes = b""
    quiet: bool = False
    frees: tuple[int, ...] = ()
    credit: int = 0
    tid: int = 0

    @property
    def base(self) -> int:
        """Where in the frame the body begins."""
        return base(len(self.frees))

    def pack(self) -> bytes:
        return (
            head(
                self.op,
                self.serial,
                len(self.body),
                self.frees,
                self.credit,
                self.quiet,
                self.tid,
            )
            + self.body
        )

    @classmethod
    def parse(cls, frame: bytes) -> Self:
        """FormatError for what is none."""
        if len(frame) < HEAD.size:
            raise FormatError("a frame without a head")
        length, op, flags, serial, count, credit, tid = HEAD.unpack_from(frame)
        if length != len(frame) or length > LENGTH_MAX:
            raise FormatError("a frame of another length than it says")
        if count > FREES_MAX or base(count) > length:
            raise FormatError("more offsets than a frame has")
        if flags & ~QUIET or credit > CREDIT_MAX:
            raise FormatError("flags or credit that there are not")
        frees = struct.unpack_from(f"<{count}Q", frame, HEAD.size)
        body = bytes(frame[base(count) :])
        return cls(op, serial, body, bool(flags & QUIET), frees, credit, tid)


def base(frees: int) -> int:
    """Where the body of a request begins that has so many offsets to free."""
    return HEAD.size + 8 * frees


def head(
    op: int,
    serial: int,
    size: int,
    frees: tuple[int, ...] = (),
    credit: int = 0,
    quiet: bool = False,
    tid: int = 0,
) -> bytes:
    """All of a request but its body, which has `size` bytes. FormatError if it is too long."""
    count = len(frees)
    length = HEAD.size + 8 * count + size
    if length > LENGTH_MAX or count > FREES_MAX:
        raise FormatError("more than fits into a frame")
    data = HEAD.pack(length, op, QUIET if quiet else 0, serial, count, credit, tid)
    return data + struct.pack(f"<{count}Q", *frees) if count else data


@dataclass(slots=True)
class Answer:
    """What came of a request. `op` is the request's, `error` an errno of Linux or 0."""

    op: int
    serial: int
    error: int = 0
    n_fds: int = 0
    body: bytes = b""

    def pack(self) -> bytes:
        length = HEAD.size + len(self.body)
        return (
            HEAD.pack(length, self.op | ANSWER, 0, self.serial, self.error, self.n_fds, 0)
            + self.body
        )


@dataclass(slots=True)
class Wake:
    """The queue of a handle without credit begins to hold something."""

    def pack(self) -> bytes:
        return HEAD.pack(HEAD.size, WAKE, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class Fed:
    """A message in the pool, handed over for one credit. `lost`: so many were lost before it."""

    offset: int
    size: int
    flags: int = 0
    lost: int = 0
    n_fds: int = 0

    def pack(self) -> bytes:
        length = HEAD.size + INFO.size
        data = HEAD.pack(length, MESSAGE, 0, 0, 0, self.n_fds, 0)
        return data + INFO.pack(self.offset, self.size, self.flags, self.lost)


FromBus = Answer | Wake | Fed


def parse(frame: bytes | memoryview) -> FromBus:
    """A frame that the bus sent. FormatError for what is none."""
    size = len(frame)
    if size < HEAD.size:
        raise FormatError("a frame without a head")
    length, op, _, serial, error, n_fds, _ = HEAD.unpack_from(frame)
    if length != size:
        raise FormatError("a frame of another length than it says")
    if op == MESSAGE:
        if size < HEAD.size + INFO.size:
            raise FormatError("MESSAGE is too short")
        offset, length, flags, lost = INFO.unpack_from(frame, HEAD.size)
        return Fed(offset, length, flags, lost, n_fds)
    if op == WAKE:
        return Wake()
    if not op & ANSWER:
        raise FormatError("neither an answer nor a message")
    return Answer(op & ~ANSWER, serial, error, n_fds, bytes(frame[HEAD.size :]))


class Splitter:
    """Cuts a stream into frames, for sockets that keep no bounds themselves."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The frames that are complete now. FormatError where the next one cannot be."""
        self.data += data
        frames = []
        at = 0
        while len(self.data) - at >= 4:
            length = int.from_bytes(self.data[at : at + 4], "little")
            if not HEAD.size <= length <= LENGTH_MAX:
                raise FormatError("a frame of an impossible length")
            if len(self.data) - at < length:
                break
            frames.append(bytes(self.data[at : at + length]))
            at += length
        del self.data[:at]
        return frames


def command(name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
    """A command's struct: `fields` stand behind its three first ones, the rest is zeros."""
    fixed = SIZES[name]
    size = fixed + len(items)
    if size > c.CMD_MAX_SIZE:
        raise FormatError(f"{name} with more than {c.CMD_MAX_SIZE} bytes")
    data = struct.pack("<3Q", size, flags, 0) + fields
    return data + bytes(fixed - len(data)) + items
