"""Outgoing: where a message's payload goes, and what becomes of a SEND.

Invariant: payload goes into the frame if it fits, else into the outbox, else into a sealed memfd;
the bus copies the first two once and the last never. Where there are no memfds, an outbox without
room makes way for a new one. Who called `send()` may use its buffers again when it returns.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jitney.broker.kdbus import constants as c

from . import frames
from .envelope import Envelope, InMemfd, Vec
from .errors import BusError, error_of
from .frames import Answer
from .link import Link, close_all, gone
from .memory import Data, Memfd, Outbox, as_bytes, sealed
from .message import Message

BROADCAST = c.DST_BROADCAST

Payload = Data | Memfd | Sequence[Data | Memfd | int]
Bloom = tuple[int, bytes]
Refused = deque[tuple[int, BusError]]

QUIET_MAX = 1024
"""So many quiet SENDs are remembered for an error that may still come."""

_SEND = frames.OPS["SEND"]
_SIZE = frames.SIZES["SEND"]
_COMMAND = struct.Struct("<4Q")
_INFO = struct.Struct("<3Q")


@dataclass(slots=True)
class Outgoing:
    """A message to be sent."""

    destination: int | str
    payload: Payload
    fds: Sequence[int] = ()
    priority: int = 0
    payload_type: int = 1
    flags: int = 0
    timeout: int = 0
    bloom: Bloom | None = None


@dataclass(slots=True)
class _Placed:
    """What a SEND is made of: the frame's body, and what it holds until it was sent or read."""

    body: list[Data]
    frees: tuple[int, ...]
    fds: list[int]
    made: list[Memfd] = field(default_factory=list)
    in_outbox: bool = False


class Sender:
    """SENDs of one connection. `received(offset, size, flags, lost, fds)` makes a Message."""

    def __init__(
        self,
        link: Link,
        outbox_size: int,
        received: Callable[[int, int, int, int, list[int]], Message],
        refused: Refused,
    ) -> None:
        self.link = link
        self.refused = refused
        # (serial, cookie) of quiet ones that may still be refused.
        self.unanswered: deque[tuple[int, int]] = deque(maxlen=QUIET_MAX)
        self.outbox_size = outbox_size
        self.received = received
        self.outbox: Outbox | None = None
        self.cookie = 0
        link.answered = self.answered

    def answered(self, answer: Answer) -> None:
        """Hears of each answer, before who waits for it."""
        serial = answer.serial
        if self.outbox is not None and self.outbox.held:
            self.outbox.answered(serial)
        unanswered = self.unanswered
        if unanswered and answer.error and serial not in self.link.pending:
            for number, cookie in unanswered:
                if number == serial:
                    self.refused.append((cookie, error_of(answer.error, "SEND")))

    def close(self) -> None:
        if self.outbox is not None:
            self.outbox.close()
            self.outbox = None

    # The ways

    async def send(self, out: Outgoing, quiet: bool = False) -> int:
        """Its cookie. `quiet`: returns when it went out; an error goes to `refused`."""
        cookie = self.next_cookie()
        if quiet:
            serial, taken = self.put(out, cookie, 0, None)
            self.unanswered.append((serial, cookie))
            if taken is not None:
                await taken
            return cookie
        found: asyncio.Future[Answer] = self.link.loop.create_future()

        def answered(answer: Answer | None, came: list[int]) -> None:
            close_all(came)
            if found.done():
                return
            if answer is None:
                found.set_exception(gone())
            else:
                found.set_result(answer)

        self.put(out, cookie, 0, answered)
        answer = await found
        if answer.error:
            raise error_of(answer.error, "SEND")
        return cookie

    async def call(self, out: Outgoing) -> Message:
        found: asyncio.Future[tuple[Answer, list[int]]] = self.link.loop.create_future()

        def answered(answer: Answer | None, came: list[int]) -> None:
            if answer is None:
                if not found.done():
                    found.set_exception(gone())
            elif not found.done():
                found.set_result((answer, came))
            elif not answer.error:
                self.message(answer, came).free()
            else:
                close_all(came)

        serial, _ = self.put(out, self.next_cookie(), c.SEND_SYNC_REPLY, answered)
        try:
            answer, came = await found
        except asyncio.CancelledError:
            if found.done() and not found.cancelled() and found.exception() is None:
                answered_late, came = found.result()
                answered(answered_late, came)
            elif not self.link.closed:
                take_back = struct.pack("<2I", serial, 0)
                self.link.put(frames.CANCEL, [take_back], self.link.take_frees())
            raise
        if answer.error:
            close_all(came)
            raise error_of(answer.error, "SEND")
        return self.message(answer, came)

    def message(self, answer: Answer, came: list[int]) -> Message:
        offset, size, flags = _INFO.unpack_from(answer.body, 32)
        return self.received(offset, size, flags, 0, came)

    def next_cookie(self) -> int:
        self.cookie += 1
        return self.cookie

    # The frame

    def put(
        self,
        out: Outgoing,
        cookie: int,
        flags: int,
        callback: Callable[[Answer | None, list[int]], None] | None,
    ) -> tuple[int, asyncio.Future[None] | None]:
        frees = self.link.take_frees()
        made: list[Memfd] = []
        try:
            try:
                placed = self.place(out, cookie, flags, frees, made)
            except BaseException:
                if self.link.pool is not None:
                    self.link.pool.frees[:0] = frees
                raise
            # Of a quiet one nobody would tell when the outbox may be written to again.
            quiet = callback is None and not placed.in_outbox
            sent = self.link.put(_SEND, placed.body, frees, callback, placed.fds, quiet)
            if placed.in_outbox and self.outbox is not None:
                self.outbox.hold(sent[0])
            return sent
        finally:
            for memfd in made:
                memfd.close()

    def place(
        self,
        out: Outgoing,
        cookie: int,
        flags: int,
        frees: tuple[int, ...],
        made: list[Memfd],
    ) -> _Placed:
        head = Envelope(0, out.flags, cookie, out.timeout, out.priority, out.payload_type)
        if isinstance(out.destination, str):
            head.name = out.destination.encode()
        else:
            head.dst = out.destination
        head.bloom = out.bloom
        placed = _Placed([], frees, [], made)
        for fd in out.fds:
            placed.fds.append(fd)
        head.fds = tuple(range(len(out.fds)))
        chunks: list[memoryview] = []
        total = 0
        for part in parts_of(out.payload):
            if isinstance(part, Memfd):
                head.parts.append(InMemfd(part.start, part.size, len(placed.fds)))
                placed.fds.append(part.fd)
            elif isinstance(part, int):
                head.parts.append(Vec(part, 0))
            else:
                view = as_bytes(part)
                if len(view):
                    head.parts.append(Vec(len(view), ~len(chunks)))
                    chunks.append(view)
                    total += len(view)
        base = frames.base(len(frees)) + _SIZE
        where: int | None = base + head.size
        if base + head.size + total > frames.LENGTH_MAX:
            where = self.in_outbox(chunks, total)
            placed.in_outbox = where is not None
        memfd: Memfd | None = None
        if where is None:
            # The room is taken, or never was.
            try:
                memfd = sealed(*chunks)
            except OSError as error:
                fits = self.outbox_size and total <= c.PAYLOAD_VEC_MAX
                if error.errno != errno.ENOSYS or not fits:
                    raise
                where = self.in_new_outbox(chunks, total)
                placed.in_outbox = True
        if memfd is not None:
            made.append(memfd)
            start = 0
            for index, item in enumerate(head.parts):
                if isinstance(item, Vec) and item.address < 0:
                    head.parts[index] = InMemfd(start, item.size, len(placed.fds))
                    start += item.size
            placed.fds.append(memfd.fd)
        elif where is not None:
            for index, item in enumerate(head.parts):
                if isinstance(item, Vec) and item.address < 0:
                    head.parts[index] = Vec(item.size, where)
                    where += item.size
        command = _COMMAND.pack(_SIZE, flags, 0, base) + bytes(_SIZE - _COMMAND.size)
        placed.body = [command + head.pack()]
        if not placed.in_outbox and not made:
            placed.body += chunks
        return placed

    def in_outbox(self, chunks: list[memoryview], total: int) -> int | None:
        """The address of these bytes in the outbox; None if they have to go another way."""
        if total > min(c.PAYLOAD_VEC_MAX, self.outbox_size):
            return None
        outbox = self.outbox or self.make_outbox(self.outbox_size)
        at = outbox.write(chunks, total)
        return frames.IN_OUTBOX + at if at is not None else None

    def make_outbox(self, size: int) -> Outbox:
        outbox = Outbox(size)

        def told(answer: Answer | None, came: list[int]) -> None:
            close_all(came)
            if answer is not None and answer.error:
                # What was put there is refused as well; from now on we do without.
                self.outbox_size = 0

        try:
            self.link.put(frames.OUTBOX, (), (), told, [outbox.fd])
        except BaseException:
            outbox.close()
            raise
        self.outbox = outbox
        return outbox

    def in_new_outbox(self, chunks: list[memoryview], total: int) -> int:
        """The same, in one that takes the place of the old one, which the bus has read by then."""
        old = self.outbox
        outbox = self.make_outbox(max(self.outbox_size, total))
        if old is not None:
            old.close()
        at = outbox.write(chunks, total)
        assert at is not None
        return frames.IN_OUTBOX + at


def parts_of(payload: Payload) -> Sequence[Data | Memfd | int]:
    if isinstance(payload, (bytes, bytearray, memoryview, Memfd)):
        return (payload,)
    return payload
