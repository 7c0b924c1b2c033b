"""Copies between a client's memory and ours, and its descriptors.

Invariant: each call in here may block for as long as the client likes (its pages may be another
file system's, or its own to answer for), so it is only made by a thread that can be left alone with
it (see `crew`), and never while the domain's lock is held.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jitney.broker.kdbus.errors import KdbusError

from ..request import Memory

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_size_t), ("length", ctypes.c_size_t)]


_readv = _libc.process_vm_readv
_writev = _libc.process_vm_writev
for _call in (_readv, _writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
        ctypes.c_ulong,
    ]  # fmt: skip
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_PIDFD_GETFD = 438
_STATX = 332 if os.uname().machine == "x86_64" else 291
_AT_EMPTY_PATH, _DONT_SYNC = 0x1000, 0x4000

_GET_SEALS = 1034
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE

SCRATCH = 2 * 1024 * 1024 + 64 * 1024


class Scratch:
    """Memory of one thread, into which clients' bytes are copied first."""

    def __init__(self) -> None:
        self.buffer = bytearray(SCRATCH)
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


class FdHandle:
    """A descriptor of ours that stands for a client's; the last one who holds it closes it."""

    def __init__(self, fd: int, close: Callable[[int], None]) -> None:
        self.fd = fd
        self.close = close
        self.holders = 1

    def hold(self) -> FdHandle:
        self.holders += 1
        return self

    def drop(self) -> None:
        self.holders -= 1
        if not self.holders:
            self.close(self.fd)

    def read(self, start: int, size: int) -> bytes:
        data = os.pread(self.fd, size, start)
        if len(data) != size:
            raise KdbusError(errno.EFAULT)
        return data


class _Statx(ctypes.Structure):
    _fields_ = [
        ("head", ctypes.c_uint32 * 4), ("link_uid_gid", ctypes.c_uint32 * 3),
        ("mode", ctypes.c_uint16), ("spare", ctypes.c_uint16), ("numbers", ctypes.c_uint64 * 4),
        ("times", ctypes.c_uint64 * 8), ("rdev", ctypes.c_uint32 * 2), ("dev", ctypes.c_uint32 * 2),
        ("rest", ctypes.c_uint64 * 14),
    ]  # fmt: skip


def kind_of(fd: int) -> tuple[int, int]:
    """(mode, device) as far as known without asking anybody: the file may be our own."""
    out = _Statx()
    if _syscall(_STATX, fd, b"", _AT_EMPTY_PATH | _DONT_SYNC, 0x7FF, ctypes.byref(out)) < 0:
        raise KdbusError(errno.EBADF)
    return out.mode, os.makedev(out.dev[0], out.dev[1])


class ProcessMemory(Memory):
    """The memory and descriptors of the thread that waits in an ioctl of ours.

    `own_device`: of our mount, whose files are not passed on; `close` gets rid of a descriptor."""

    def __init__(self, tid: int, own_device: int, close: Callable[[int], None]) -> None:
        self.tid = tid
        self.own_device = own_device
        self.close = close

    def read(self, address: int, size: int) -> bytes:
        data = self.read_some(address, size)
        if len(data) != size:
            raise KdbusError(errno.EFAULT)
        return data

    def read_some(self, address: int, size: int) -> bytes:
        room = scratch()
        local = _Iovec(room.base, size)
        remote = _Iovec(address, size)
        got = _readv(self.tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if got < 0:
            raise _failed()
        return bytes(room.view[:got])

    def read_many(self, parts: Sequence[tuple[int, int]]) -> Sequence[Any]:
        room = scratch()
        count = len(parts)
        total = sum(size for _, size in parts)
        local = _Iovec(room.base, total)
        # The kernel takes 1024 at a time; a message cannot have more items than that.
        remote = (_Iovec * count)(*parts)  # type: ignore[misc]
        got = _readv(self.tid, ctypes.byref(local), 1, remote, count, 0)
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
        local = _Iovec(ctypes.addressof(buffer), len(data))
        remote = _Iovec(address, len(data))
        done = _writev(self.tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if done < 0:
            raise _failed()
        if done != len(data):
            raise KdbusError(errno.EFAULT)

    def get_fd(self, number: int) -> int:
        if number < 0:
            raise KdbusError(errno.EBADF)
        pid = _thread_group(self.tid)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise KdbusError(errno.EBADF) from error
        try:
            fd = _syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd < 0:
            raise KdbusError(errno.EPERM if ctypes.get_errno() == errno.EPERM else errno.EBADF)
        return int(fd)

    def take_fd(self, number: int) -> FdHandle:
        fd = self.get_fd(number)
        handle = FdHandle(fd, self.close)
        try:
            mode, device = kind_of(fd)
            path_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
            # As kdbus: neither its own descriptors nor sockets that could carry others.
            if not path_only and (
                device == self.own_device or (stat.S_ISSOCK(mode) and _is_unix(fd))
            ):
                raise KdbusError(errno.EOPNOTSUPP)
        except KdbusError:
            handle.drop()
            raise
        return handle

    def take_memfd(self, number: int, start: int, size: int) -> FdHandle:
        fd = self.get_fd(number)
        handle = FdHandle(fd, self.close)
        try:
            try:
                seals = fcntl.fcntl(fd, _GET_SEALS)
            except OSError as error:
                raise KdbusError(errno.EMEDIUMTYPE) from error
            if seals & _SEALS != _SEALS:
                raise KdbusError(errno.ETXTBSY)
            if start + size > os.fstat(fd).st_size:
                raise KdbusError(errno.EFAULT)
        except KdbusError:
            handle.drop()
            raise
        return handle


def _is_unix(fd: int) -> bool:
    import socket

    with socket.socket(fileno=os.dup(fd)) as other:
        return other.family == socket.AF_UNIX


def _thread_group(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", "rb", 0) as file:
            status = file.read(4096)
        at = status.index(b"\nTgid:\t") + 7
        return int(status[at : status.index(b"\n", at)])
    except (OSError, ValueError) as error:
        raise KdbusError(errno.EBADF) from error
