# cython: infer_types=True
"""Queue: the bytes that one receiver has yet to get, and who is charged for them.

Invariant: `size` and `n_fds` are what is queued and not yet handed out by `sent()`; each
queued message is charged to a tally of its sender's from `push()` until its last byte is sent
or the queue is cleared. Messages keep their order; descriptors go out with the first byte of
their message. A small message costs one copy into the tail buffer; a large body is queued
by reference (Payload) and never copied while the receiver keeps up.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import Accounts, Tally
from .fds import FdSet
from .mem import Buffer, Ring
from .message import Message
from .meter import Counts, Histogram

if not cython.compiled:
    from .mem import borrow, copy, give, of_bytes, store32, take, view, zero

# Bodies from this size on are queued by reference.
BIG = 16384
# A full tail with this much in it grows no more, another one follows it: to move all that waits
# for a slow reader would cost time as its backlog grows.
RUN = 131072


def sender_field(name: bytes, big: bool) -> bytes:
    """The SENDER header field, ready to be appended behind 8-aligned fields."""
    # No name is longer than 255 bytes.
    size = b"\0\0\0%c" if big else b"%c\0\0\0"
    return b"\x07\x01s\0" + size % len(name) + name + b"\0"


class Payload:
    """Body bytes shared by the queues that reference them.

    While `loaned`, the bytes belong to a receive buffer that is about to be used again;
    `pin()` copies them once, for all holders, if somebody still needs them by then."""

    def __init__(self, size: int) -> None:
        self.p: Any
        self.size = size
        self.loaned = True
        self.holders = 0
        self.owner: Any | None = None

    def pin(self) -> bool:
        """False without memory: then nobody may have it any more."""
        data = Buffer()
        try:
            data.append(self.p, 0, self.size)
        except MemoryError:
            return False
        self.owner = data
        self.p = data.p
        self.loaned = False
        return True


class Segment:
    """A run of bytes in the queue: the rest of a buffer, or of a payload."""

    def __init__(self) -> None:
        self.buffer: Buffer | None = None
        self.payload: Payload | None = None
        self.fds: FdSet | None = None
        self.off = 0
        self.end = 0


def buffer_run(buffer: Buffer, fds: FdSet | None) -> Segment:
    segment = Segment()
    segment.buffer = buffer
    segment.fds = fds
    segment.off = buffer.head
    segment.end = buffer.end
    return segment


def payload_run(payload: Payload) -> Segment:
    segment = Segment()
    segment.payload = payload
    segment.end = payload.size
    payload.holders += 1
    return segment


class Queue:
    """One receiver's queue: `segments`, then `tail`, whose first byte carries `tail_fds`.

    An empty queue has no tail: buffers are borrowed."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.tail: Buffer | None = None
        self.tail_fds: FdSet | None = None
        self.segments: list[Segment] = []
        self.charges = Ring()
        self.size = 0
        self.n_fds = 0
        self.dirty = False
        self.counts: Counts | None = None

    def __len__(self) -> int:
        return self.charges.count

    def push(self, msg: Message, head, head_len: int, field: bytes | None, tally: Tally) -> int:
        """Queues `msg` with the header head[:head_len] and SENDER `field`; its size in bytes.

        `head` is the forwarded header (fixed part and fields without SENDER); with `field`
        None the message goes out as it is (the driver's own). Without memory (MemoryError) the
        queue is as it was: what may fail comes before anything is changed."""
        tail = self.tail
        fds = msg.fds
        if fds is not None and tail is not None:
            # Descriptors belong to the first byte of their message: start a new run there.
            self.seal()
            tail = None
        big_body = msg.body_len >= 16384
        pos = (head_len + 7) & ~7
        size = pos
        n_field = 0
        if field is not None:
            n_field = len(field)
            size = (pos + n_field + 7) & ~7
        need = size if big_body else size + msg.body_len
        if tail is not None and tail.cap - tail.end < need and tail.end - tail.head >= 131072:
            self.seal()
            tail = None
        fresh = tail is None
        if fresh:
            tail = borrow()
        tail.reserve(need)
        total = size + msg.body_len
        count = len(fds) if fds is not None else 0
        payload = msg_payload(msg) if big_body else None
        self.charges.push(total, count, tally.index, self.accounts.moment)
        if fresh:
            self.tail = tail
            self.tail_fds = fds
        base = tail.end
        copy(tail.p, base, head, 0, head_len)
        zero(tail.p, base + head_len, pos - head_len)
        if field is not None:
            store32(tail.p, base + 12, pos - 16 + n_field, msg.big)
            copy(tail.p, base + pos, of_bytes(field), 0, n_field)
            zero(tail.p, base + pos + n_field, size - pos - n_field)
        if not big_body:
            copy(tail.p, base + size, msg.p, msg.body_off, msg.body_len)
        tail.end = base + need
        if big_body:
            self.seal()
            self.segments.append(payload_run(payload))
        self.size += total
        self.n_fds += count
        self.accounts.charge(tally, total, count)
        return total

    def seal(self) -> None:
        """Turns the tail into a segment, so that what follows starts a new run."""
        if self.tail is not None:
            self.segments.append(buffer_run(self.tail, self.tail_fds))
            self.tail = None
            self.tail_fds = None

    def sent(self, n: int) -> None:
        """The first `n` bytes are gone; discharges each message that is gone whole."""
        self.size -= n
        charges = self.charges
        left = n
        moment = self.accounts.moment
        gone = 0
        # Messages of one sender in a row are discharged together.
        tally = -1
        size = fds = 0
        while left > 0:
            rest = charges.take_left(left)
            if rest < 0:
                break
            left = rest
            if charges.front_tally() != tally:
                if tally >= 0:
                    self.n_fds -= fds
                    self.accounts.discharge(tally, size, fds)
                tally = charges.front_tally()
                size = fds = 0
            size += charges.front_size()
            fds += charges.front_fds()
            if moment - charges.front_when() >= 16:
                self.waited(moment - charges.front_when())
            gone += 1
            charges.pop()
        if self.counts is not None:
            self.counts.gone += gone
        if tally >= 0:
            self.n_fds -= fds
            self.accounts.discharge(tally, size, fds)
        if self.segments:
            n = self.drop_segments(n)
        if n:
            tail = self.tail
            tail.head += n
            self.tail_fds = None
            if tail.head == tail.end:
                self.tail = None
                give(tail)

    def begins_with_fds(self) -> bool:
        """Whether descriptors go out with the next byte, which is then the first of its message."""
        if self.segments:
            first = self.segments[0]
            return first.fds is not None
        return self.tail_fds is not None

    def skip(self) -> bytes:
        """Drops the first message, of which nothing has been sent, and discharges it; its bytes."""
        size = self.charges.front_size()
        skipped = self.peek()[:size]
        self.sent(size)
        return skipped

    def waited(self, microseconds: int) -> None:
        """A message is gone that had to wait for longer than the round that brought it."""
        counts = self.counts
        if counts is not None:
            if counts.waits is None:
                counts.waits = Histogram()
            counts.waits.note(microseconds)

    def oldest(self) -> int:
        """Since when the first message waits, by `Accounts.moment`; 0 if there is none."""
        return self.charges.front_when() if self.charges.count else 0

    def drop_segments(self, n: int) -> int:
        gone = 0
        for segment in self.segments:
            left = segment.end - segment.off
            if n < left:
                if n:
                    segment.off += n
                    segment.fds = None
                n = 0
                break
            n -= left
            gone += 1
            segment.fds = None
            if segment.payload is not None:
                segment.payload.holders -= 1
        del self.segments[:gone]
        return n

    def clear(self) -> None:
        """Forgets everything that is queued, and discharges it."""
        charges = self.charges
        while charges.count:
            self.accounts.discharge(
                charges.front_tally(), charges.front_size(), charges.front_fds()
            )
            charges.pop()
        for segment in self.segments:
            if segment.payload is not None:
                segment.payload.holders -= 1
        self.segments.clear()
        self.tail = None
        self.tail_fds = None
        self.size = 0
        self.n_fds = 0

    def holds(self, payload: Payload) -> bool:
        """Whether some of these bytes are still to go out."""
        for segment in self.segments:
            if segment.payload is payload:
                return True
        return False

    # For Python callers and tests: the queue without a socket.

    def charges_list(self) -> list[tuple[int, int, int]]:
        """(size, fds, index of the charged tally) of each message not gone whole, oldest first."""
        return self.charges.items()

    def peek(self) -> bytes:
        """All queued bytes."""
        out = []
        for segment in self.segments:
            if segment.buffer is not None:
                out.append(take(segment.buffer.p, segment.off, segment.end - segment.off))
            else:
                out.append(take(segment.payload.p, segment.off, segment.end - segment.off))
        if self.tail is not None:
            out.append(bytes(self.tail))
        return b"".join(out)

    def runs(self) -> list[tuple[bytes, list[int]]]:
        """Queued bytes cut where descriptors begin, each run with those of its first byte."""
        out: list[tuple[bytes, list[int]]] = []
        parts = []
        for segment in self.segments:
            if segment.buffer is not None:
                data = take(segment.buffer.p, segment.off, segment.end - segment.off)
            else:
                data = take(segment.payload.p, segment.off, segment.end - segment.off)
            parts.append((segment.fds, data))
        if self.tail is not None:
            parts.append((self.tail_fds, bytes(self.tail)))
        for fds, data in parts:
            if fds is None and out:
                out[-1] = (out[-1][0] + data, out[-1][1])
            else:
                out.append((data, list(fds) if fds is not None else []))
        return out


def msg_payload(msg: Message) -> Payload:
    """The message's body as a Payload: one for all receivers."""
    payload = msg.payload
    if payload is None:
        payload = Payload(msg.body_len)
        payload.p = view(msg.p, msg.body_off, msg.body_len)
        if msg.owner is not None:
            payload.owner = msg.owner
            payload.loaned = False
        msg.payload = payload
    return payload
