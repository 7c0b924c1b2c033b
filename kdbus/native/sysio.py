"""Sysio: reading and writing frames and waiting for them; the plain Python twin of `sysio.pyx`.

Invariant: every descriptor that came is in `fds` after `receive()`, whatever else is wrong with the
frame.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

_ROOM = socket.CMSG_SPACE(4 * 253) + socket.CMSG_SPACE(12)
_RIGHTS = socket.SCM_RIGHTS
_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", -1)
_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Reader:
    """`buffer` has the frame after `receive()`, `fds` and `said` what came with it. `cut`: it is
    longer than the buffer; `lost`: there were more descriptors."""

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self.fds: Sequence[int] = ()
        self.said: bytes | None = None
        self.cut = self.lost = False

    def receive(self, sock: Any, fd: int) -> int:
        """Its size, 0 at the end; -1: nothing is there; -2: the socket is of no use."""
        try:
            got, ancillary, flags, _ = sock.recvmsg_into((self.buffer,), _ROOM, _CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError:
            return -2
        self.fds = ()
        self.said = None
        self.cut = bool(flags & socket.MSG_TRUNC)
        self.lost = bool(flags & socket.MSG_CTRUNC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET:
                if kind == _CREDENTIALS:
                    self.said = data
                elif kind == _RIGHTS:
                    numbers = memoryview(data)[: len(data) & ~3].cast("i")
                    self.fds = [*self.fds, *numbers]
        return int(got)


class Poll:
    """What is ready of an epoll set, from `wait()` to the next."""

    def __init__(self, epoll: Any) -> None:
        self.epoll = epoll
        self.found: list[tuple[int, int]] = []

    def close(self) -> None:
        """The set is over; its number may soon be another's."""

    def wait(self, milliseconds: int, most: int) -> int:
        """How many, at most `most`; -1 if a signal came first."""
        left = milliseconds / 1000 if milliseconds >= 0 else -1
        self.found = self.epoll.poll(left, most)
        return len(self.found)

    def fd_at(self, i: int) -> int:
        return self.found[i][0]

    def events_at(self, i: int) -> int:
        return self.found[i][1]


def send(sock: Any, fd: int, data: bytearray, size: int) -> int:
    """How much of the first `size` bytes the socket took; -1: nothing now, -2: it is of no use."""
    try:
        return int(sock.send(memoryview(data)[:size], _FLAGS))
    except (BlockingIOError, InterruptedError):
        return -1
    except OSError:
        return -2


def milliseconds_now() -> int:
    return time.monotonic_ns() // 1000000
