"""FrameMemory: a client's memory, as far as it came along: a frame, its descriptors, its outbox.

Invariant: nothing here waits. A frame is a copy already; an outbox is memory of a kind that can be
read without asking anybody, and what is missing in it at the moment of copying is zeros. Each
descriptor that came is closed exactly once: when the frame is done, or by the last who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from typing import Any

from jitney.broker.kdbus.errors import KdbusError

from ..descriptors import GET_SEALS, FdHandle, is_tmpfs, need_harmless, need_payload
from ..request import Memory
from .frames import OUTBOX
from .pool import has_memfd
from .purse import HeldFd, Purse

QUICK = ("pipe:[", "anon_inode:[eventfd]")
"""What asks nobody when it is closed; no path of a file looks like that."""


class Lent:
    """Payload that is still in an outbox, and is copied from there into the pool at once."""

    __slots__ = ("fd", "size", "start")

    def __init__(self, fd: int, start: int, size: int) -> None:
        self.fd = fd
        self.start = start
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        data = bytearray(self.size)
        self.into(data, 0)
        return bytes(data)

    def into(self, data: Any, offset: int) -> None:
        """What its owner has cut off meanwhile is zeros: others wait for this copy to succeed."""
        done = 0
        with memoryview(data) as view:
            while done < self.size:
                part = view[offset + done : offset + self.size]
                try:
                    got = os.preadv(self.fd, (part,), self.start + done)
                except OSError:
                    got = 0
                if got <= 0:
                    part[:] = bytes(self.size - done)
                    got = self.size - done
                part.release()
                done += got


class FrameMemory(Memory):
    """`view` is the frame; places before `first` are the head's. `whole`: payload of the outbox
    is copied once for all, for several are to see the same. `purse`: what descriptors count in."""

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.view = memoryview(b"")
        self.first = 0
        self.fds: Sequence[int] = ()
        self.handles: list[FdHandle | None] = []
        self.outbox: FdHandle | None = None
        self.whole = False

    def begin(self, view: memoryview, first: int, fds: Sequence[int]) -> None:
        self.view = view
        self.first = first
        self.fds = fds
        self.handles = [None] * len(fds) if fds else []

    def end(self) -> None:
        """The frame is done with; so are descriptors that nobody holds."""
        if not self.fds:
            return
        for number, handle in zip(self.fds, self.handles, strict=True):
            if handle is None:
                self.purse.close(number)
            else:
                handle.drop()
        self.fds = ()
        self.handles = []

    # The frame

    def read(self, address: int, size: int) -> Any:
        end = address + size
        if address < self.first or end > len(self.view):
            raise KdbusError(errno.EFAULT)
        return self.view[address:end]

    def read_some(self, address: int, size: int) -> Any:
        if address < self.first or address >= len(self.view):
            raise KdbusError(errno.EFAULT)
        return self.view[address : address + size]

    def read_many(self, parts: Sequence[tuple[int, int]]) -> Sequence[Any]:
        return [
            self.read(address, size) if address < OUTBOX else self.lend(address - OUTBOX, size)
            for address, size in parts
        ]

    def lend(self, start: int, size: int) -> Any:
        if self.outbox is None or start + size > os.fstat(self.outbox.fd).st_size:
            raise KdbusError(errno.EFAULT)
        lent = Lent(self.outbox.fd, start, size)
        return bytes(lent) if self.whole else lent

    def set_outbox(self) -> None:
        """OUTBOX: the descriptor that came along is the outbox from now on."""
        handle = self.take(0)
        if not is_memory(handle.fd):
            raise KdbusError(errno.EMEDIUMTYPE)
        try:
            os.pread(handle.fd, 1, 0)
        except OSError as error:
            raise KdbusError(errno.EBADF) from error
        old, self.outbox = self.outbox, handle.hold()
        if old is not None:
            old.drop()

    # Descriptors

    def take(self, number: int) -> FdHandle:
        """Our handle of a descriptor, which is good until the frame is done."""
        if not 0 <= number < len(self.fds):
            raise KdbusError(errno.EBADF)
        handle = self.handles[number]
        if handle is None:
            if self.purse.held >= self.purse.most:
                raise KdbusError(errno.EMFILE)
            handle = self.handles[number] = HeldFd(self.fds[number], self.purse)
        return handle

    def take_fd(self, number: int) -> FdHandle:
        """As kdbus: no sockets that could carry others, but the path of one may be sent."""
        handle = self.take(number)
        kind = os.readlink(f"/proc/self/fd/{handle.fd}")
        if kind.startswith("socket:"):
            if is_unix(handle.fd):
                raise KdbusError(errno.EOPNOTSUPP)
        elif kind.startswith(QUICK):
            handle.close = os.close
        return handle.hold()

    def take_memfd(self, number: int, start: int, size: int) -> FdHandle:
        handle = self.take(number)
        need_payload(handle.fd, start, size)
        handle.close = os.close
        return handle.hold()

    def take_cancel(self, number: int) -> FdHandle:
        handle = self.take(number)
        need_harmless(handle.fd)
        handle.close = os.close
        return handle.hold()


def is_unix(fd: int) -> bool:
    try:
        probe = socket.socket(fileno=fd)
    except OSError:
        return False  # of its path alone
    family = probe.family
    probe.detach()
    return family == socket.AF_UNIX


def is_memory(fd: int) -> bool:
    """Whether reading it asks nobody: a memfd, or a file of a tmpfs."""
    try:
        fcntl.fcntl(fd, GET_SEALS)
    except OSError:
        # Where there are no seals, the kernel is older than memfds.
        return not has_memfd() and is_tmpfs(fd)
    return True
