"""Link: one socket to a node of the bus, on asyncio's loop.

Invariant: each request with an answer has its callback called exactly once: with the answer, or
with None when the socket is over first. Descriptors that come belong to who is called. Frames go
out in the order in which they were made; what the socket does not take waits here.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from . import frames
from .errors import Disconnected
from .frames import Answer, Fed
from .memory import Data, Pool

Callback = Callable[[Answer | None, list[int]], None]

FREES_AT_ONCE = 64
"""With one frame; the rest of the frame is for the command."""
NUDGE = 0.01
"""Seconds that offsets wait for a frame to go with before they get one of their own."""
FRAMES_AT_ONCE = 64
_ANCILLARY = socket.CMSG_SPACE(4 * frames.FDS_MAX)
_AGAIN = 0.005


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


async def open_socket(path: str | os.PathLike[str]) -> socket.socket:
    """Connects to a node: SOCK_SEQPACKET, or SOCK_STREAM where the bus has only that. OSError."""
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(os.fspath(path))
                    return sock
                except BlockingIOError:
                    # Its backlog is full, which no poll tells the end of.
                    await asyncio.sleep(_AGAIN)
        except OSError as error:
            sock.close()
            if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                raise
        except BaseException:
            sock.close()
            raise
    raise AssertionError


class Link:
    """`fed(message, fds)` is called for each message, `over()` when the socket is."""

    def __init__(
        self,
        sock: socket.socket,
        fed: Callable[[Fed, list[int]], None] = lambda message, fds: close_all(fds),
        over: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.sock = sock
        self.fed = fed
        self.over = over
        # Told only where it is not the process's first one, which the bus takes it for.
        tid = threading.get_native_id()
        self.tid = tid if tid != os.getpid() else 0
        self.pool: Pool | None = None
        self.credit_due = 0
        self.pending: dict[int, Callback] = {}
        self.answered: Callable[[Answer], None] = lambda answer: None
        self.waiting: deque[tuple[list[Any], tuple[int, ...], asyncio.Future[None] | None]] = (
            deque()
        )
        self.last = 0
        self.closed = False
        self.timer: asyncio.TimerHandle | None = None
        self.buffer = bytearray(frames.LENGTH_MAX)
        self.view = memoryview(self.buffer)
        self.splitter = frames.Splitter() if sock.type == socket.SOCK_STREAM else None
        # Of a stream, those that came before their frame was whole.
        self.early: list[int] = []
        self.loop.add_reader(sock, self.readable)

    # Out

    def take_frees(self) -> tuple[int, ...]:
        pool = self.pool
        return pool.take_frees(FREES_AT_ONCE) if pool is not None and pool.frees else ()

    def put(
        self,
        op: int,
        body: Sequence[Data],
        frees: tuple[int, ...],
        callback: Callback | None = None,
        fds: Sequence[int] = (),
        quiet: bool = False,
    ) -> tuple[int, asyncio.Future[None] | None]:
        """Sends a request: (its serial, what to wait for until the socket took it; None: it did).

        ConnectionResetError if the socket is over, FormatError for what no frame can hold, OSError
        for descriptors that are none. What is not sent takes neither `frees` nor credit along."""
        if self.closed:
            raise gone()
        self.last = serial = self.last % 0xFFFF_FFFF + 1
        size = sum(map(len, body))
        credit = min(self.credit_due, frames.CREDIT_MAX)
        held: list[int] = []
        try:
            head = frames.head(op, serial, size, frees, credit, quiet, self.tid)
            parts: list[Any] = [head, *body]
            left: Sequence[int] | None = fds
            if not self.waiting:
                left = self.send(parts, fds)
            # Descriptors may be closed by their owner as soon as we return.
            for fd in left or ():
                held.append(os.dup(fd))
        except (OSError, frames.FormatError):
            close_all(held)
            if self.pool is not None:
                self.pool.frees[:0] = frees
            raise
        self.credit_due -= credit
        if callback is not None:
            self.pending[serial] = callback
        if left is None:
            return serial, None
        taken = self.loop.create_future()
        if not self.waiting:
            self.loop.add_writer(self.sock, self.writable)
        self.waiting.append((parts, tuple(held), taken))
        return serial, taken

    def send(self, parts: list[Any], fds: Sequence[int]) -> Sequence[int] | None:
        """None if the socket took it all; else the descriptors that did not go yet, and what is
        left of a stream's frame stays in `parts`."""
        while True:
            ancillary = []
            if fds:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            try:
                sent = self.sock.sendmsg(parts, ancillary, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return fds
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                    raise
                # What the bus sent before it went is still to be read.
                return None
            if sent == sum(map(len, parts)):
                return None
            parts[:] = [b"".join(parts)[sent:]]
            fds = ()

    def writable(self) -> None:
        while self.waiting:
            parts, fds, taken = self.waiting[0]
            left = self.send(parts, fds)
            if left is not None:
                if not left:
                    # Those have gone with the beginning.
                    close_all(fds)
                    self.waiting[0] = (parts, (), taken)
                return
            self.waiting.popleft()
            close_all(fds)
            if taken is not None and not taken.done():
                taken.set_result(None)
        self.loop.remove_writer(self.sock)

    async def ask(
        self, op: int, body: Sequence[Data], fds: Sequence[int] = ()
    ) -> tuple[Answer, list[int]]:
        """A request and its answer, with the descriptors that came along.

        ConnectionResetError if the socket is over before it."""
        found: asyncio.Future[tuple[Answer, list[int]]] = self.loop.create_future()

        def answered(answer: Answer | None, came: list[int]) -> None:
            if found.done():
                close_all(came)
            elif answer is None:
                found.set_exception(gone())
            else:
                found.set_result((answer, came))

        self.put(op, body, self.take_frees(), answered, fds)
        return await found

    def nudge(self, urgent: bool = False) -> None:
        """There are offsets or credit to go with the next frame; or soon without one."""
        if self.closed:
            return
        if urgent:
            if self.timer is not None:
                self.timer.cancel()
            self.grant()
        elif self.timer is None:
            self.timer = self.loop.call_later(NUDGE, self.grant)

    def grant(self) -> None:
        self.timer = None
        while not self.closed and (self.credit_due or (self.pool is not None and self.pool.frees)):
            self.put(frames.GRANT, (), self.take_frees())

    # In

    def readable(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            if self.closed:
                return
            try:
                size, ancillary, flags, _ = self.sock.recvmsg_into(
                    [self.buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                size, ancillary, flags = 0, [], 0
            fds: list[int] = []
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(data[: len(data) - len(data) % found.itemsize])
                    fds.extend(found)
            if not size or flags & socket.MSG_TRUNC:
                close_all(fds)
                self.close()
                return
            try:
                if self.splitter is None:
                    self.take(self.view[:size], fds)
                else:
                    self.early += fds
                    for frame in self.splitter.feed(self.view[:size]):
                        self.take(frame, None)
            except frames.FormatError:
                self.close()
                raise

    def take(self, frame: bytes | memoryview, fds: list[int] | None) -> None:
        came = frames.parse(frame)
        if fds is None:
            count = 0 if isinstance(came, frames.Wake) else came.n_fds
            fds, self.early = self.early[:count], self.early[count:]
        if isinstance(came, Fed):
            self.fed(came, fds)
        elif isinstance(came, Answer):
            self.answered(came)
            callback = self.pending.pop(came.serial, None)
            if callback is not None:
                callback(came, fds)
            else:
                close_all(fds)
        else:
            close_all(fds)

    # The end

    def close(self) -> None:
        """Ends the socket; everybody who waits for an answer hears of it."""
        if self.closed:
            return
        self.closed = True
        self.loop.remove_reader(self.sock)
        self.loop.remove_writer(self.sock)
        self.sock.close()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for _, fds, taken in self.waiting:
            close_all(fds)
            if taken is not None and not taken.done():
                taken.set_result(None)
        self.waiting.clear()
        close_all(self.early)
        self.early.clear()
        pending, self.pending = self.pending, {}
        for callback in pending.values():
            callback(None, [])
        self.over()


def gone() -> Disconnected:
    return Disconnected(errno.ECONNRESET, "the connection to the bus is over")
