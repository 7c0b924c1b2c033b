"""Copies between a client's memory and ours.

Invariant: each call in here may block for as long as the client likes (its pages may be another
file system's, or its own to answer for), so it is only made by a thread that can be left alone with
it (see `crew`), and never while the domain's lock is held.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jitney.broker.kdbus.errors import KdbusError

from ..request import Memory
from .descriptors import Descriptors, FdHandle
from .vectors import Iovec, readv, writev

SCRATCH = 2 * 1024 * 1024 + 64 * 1024


class Scratch:
    """Memory of one thread, into which clients' bytes are copied first."""

    def __init__(self) -> None:
        # Pages are only there when they were written to: most threads never see a large message.
        self.buffer = mmap.mmap(-1, SCRATCH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        self.view = memoryview(self.buffer)


_local = threading.local()


def scratch() -> Scratch:
    found: Scratch | None = getattr(_local, "scratch", None)
    if found is None:
        found = _local.scratch = Scratch()
    return found


def _failed() -> KdbusError:
    number = ctypes.get_errno()
    # A client that we may not look into is told so; one that is gone will not listen.
    return KdbusError(number if number == errno.EPERM else errno.EFAULT)


class ProcessMemory(Memory):
    """The memory and descriptors of the thread that waits in an ioctl of ours.

    `own_device`: of our mount, whose files are not passed on; `close` gets rid of a descriptor;
    `passes`: whether anybody on the bus can be given descriptors at all."""

    def __init__(
        self, tid: int, own_device: int, close: Callable[[int], None], passes: bool
    ) -> None:
        self.tid = tid
        self.descriptors = Descriptors(tid, own_device, close)
        self.passes = passes

    def read(self, address: int, size: int) -> bytes:
        data = self.read_some(address, size)
        if len(data) != size:
            raise KdbusError(errno.EFAULT)
        return data

    def read_some(self, address: int, size: int) -> bytes:
        room = scratch()
        local = Iovec(room.base, size)
        remote = Iovec(address, size)
        got = readv(self.tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if got < 0:
            raise _failed()
        return bytes(room.view[:got])

    def read_many(self, parts: Sequence[tuple[int, int]]) -> Sequence[Any]:
        room = scratch()
        count = len(parts)
        total = sum(size for _, size in parts)
        local = Iovec(room.base, total)
        # The kernel takes 1024 at a time; a message cannot have more items than that.
        remote = (Iovec * count)(*parts)  # type: ignore[misc]
        got = readv(self.tid, ctypes.byref(local), 1, remote, count, 0)
        if got < 0:
            raise _failed()
        if got != total:
            raise KdbusError(errno.EFAULT)
        out = []
        at = 0
        for _, size in parts:
            out.append(room.view[at : at + size])
            at += size
        return out

    def write(self, address: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        local = Iovec(ctypes.addressof(buffer), len(data))
        remote = Iovec(address, len(data))
        done = writev(self.tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if done < 0:
            raise _failed()
        if done != len(data):
            raise KdbusError(errno.EFAULT)

    def take_fd(self, number: int) -> Any:
        return self.descriptors.take(number, self.passes)

    def take_memfd(self, number: int, start: int, size: int) -> FdHandle:
        return self.descriptors.take_memfd(number, start, size)

    def take_cancel(self, number: int) -> FdHandle:
        return self.descriptors.take_cancel(number)
