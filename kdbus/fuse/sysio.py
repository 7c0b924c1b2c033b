"""Sysio: /dev/fuse and the memory of clients; the plain Python twin of `sysio.pyx`.

Invariant: nothing here raises for what the kernel says; a failure is a negative errno. Nothing is
written outside of a buffer, which is held as long as the kernel writes to it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from typing import Any

from .vectors import Iovec, readv, writev

_HEAD = struct.Struct("=IiQ")
_IOCTL = struct.Struct("=IiQiIII")
_NEWS = struct.Struct("=IiQQ")
_NOTIFY_POLL = 1

now = time.monotonic


def read(fd: int, buffer: bytearray) -> int:
    """The next request; its size."""
    try:
        return os.readv(fd, (buffer,))
    except OSError as error:
        return -(error.errno or 5)


def _put(fd: int, head: bytes, data: bytearray | None, at: int, n: int) -> int:
    try:
        if n and data is not None:
            os.writev(fd, (head, memoryview(data)[at : at + n]))
        else:
            os.write(fd, head)
    except OSError as error:
        # It was interrupted, or the mount is gone.
        return -(error.errno or 5)
    return 0


def _check(data: bytearray | None, at: int, n: int) -> None:
    if n < 0 or at < 0 or (n and (data is None or at + n > len(data))):
        raise IndexError("outside of the buffer")


def answer(fd: int, unique: int, number: int, data: bytearray | None, at: int, n: int) -> int:
    """Answers a request with an errno or with bytes."""
    _check(data, at, n)
    return _put(fd, _HEAD.pack(_HEAD.size + n, -number, unique), data, at, n)


def answer_ioctl(fd: int, unique: int, number: int, data: bytearray | None, at: int, n: int) -> int:
    """Answers an ioctl; with an errno the bytes go to the client as well."""
    _check(data, at, n)
    head = _IOCTL.pack(_IOCTL.size + n, 0, unique, -number, 0, 0, 0)
    return _put(fd, head, data, at, n)


def notify_poll(fd: int, handle: int) -> int:
    """Wakes up those who poll."""
    return _put(fd, _NEWS.pack(_NEWS.size, _NOTIFY_POLL, 0, handle), None, 0, 0)


def copy_in(tid: int, address: int, buffer: bytearray, n: int) -> int:
    """Up to `n` bytes of a client's memory; how many there are."""
    return gather_some(tid, [address, n], buffer, 0)


def copy_out(tid: int, address: int, buffer: bytearray, at: int, n: int) -> int:
    """Writes into a client's memory; how much it took."""
    _check(buffer, at, n)
    held = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    here = Iovec(ctypes.addressof(held) + at, n)
    there = Iovec(address, n)
    done = writev(tid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return int(done) if done >= 0 else -ctypes.get_errno()


def gather(tid: int, vecs: list[int], target: Any, at: int) -> int:
    """Copies a client's bytes, given as address and size by turns, one after the other to
    `target[at:]`; how many."""
    return gather_some(tid, vecs, target, at)


def gather_some(tid: int, vecs: list[int], target: Any, at: int) -> int:
    total = sum(vecs[1::2])
    if at < 0 or total > len(target) - at:
        raise IndexError("outside of the buffer")
    held = (ctypes.c_char * len(target)).from_buffer(target)
    here = Iovec(ctypes.addressof(held) + at, total)
    parts = zip(vecs[::2], vecs[1::2], strict=True)
    there = (Iovec * (len(vecs) // 2))(*parts)  # type: ignore[misc]
    got = readv(tid, ctypes.byref(here), 1, there, len(there), 0)
    return int(got) if got >= 0 else -ctypes.get_errno()
