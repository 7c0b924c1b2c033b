"""Descriptors that stand for a client's, whatever way they came: looked at, held, and let go.

Invariant: what a descriptor is, is told without asking anybody: its file may belong to a file
system that would have to ask its client (FUSE: ours, or a hostile one). Each is closed exactly
once, by the last who holds it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable

from jitney.broker.kdbus.errors import KdbusError

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long

_STATX = 332 if os.uname().machine == "x86_64" else 291
_AT_EMPTY_PATH, _DONT_SYNC = 0x1000, 0x4000

GET_SEALS = 1034
SEALED = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE


def close(fd: int) -> None:
    """Whatever its file system says to that."""
    try:
        os.close(fd)
    except OSError:
        pass


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
        # Before Linux 4.11 nothing tells that.
        missing = ctypes.get_errno() == errno.ENOSYS
        raise KdbusError(errno.EOPNOTSUPP if missing else errno.EBADF)
    return out.mode, os.makedev(out.dev[0], out.dev[1])


def is_tmpfs(fd: int) -> bool:
    """By its mount: statfs(2) would ask. False as well for a mount that we do not see."""
    ask = getattr(ctypes.CDLL(None), "name_to_handle_at", None)
    handle = (ctypes.c_uint32 * 34)(128)
    mount = ctypes.c_int(-1)
    if ask is None or ask(fd, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH) < 0:
        return False
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            if int(line.split(b" ", 1)[0]) == mount.value:
                return line.partition(b" - ")[2].startswith(b"tmpfs ")
    return False


def need_payload(fd: int, start: int, size: int) -> None:
    """Whether a memfd is sealed as kdbus asks and has these bytes: EMEDIUMTYPE, ETXTBSY, EFAULT."""
    try:
        seals = fcntl.fcntl(fd, GET_SEALS)
    except OSError as error:
        # Only memory has seals; no other file is looked at any further.
        raise KdbusError(errno.EMEDIUMTYPE) from error
    if seals & SEALED != SEALED:
        raise KdbusError(errno.ETXTBSY)
    if start + size > os.fstat(fd).st_size:
        raise KdbusError(errno.EFAULT)


HARMLESS = ("anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[signalfd]")


def need_harmless(fd: int) -> None:
    # statx(2) is there since Linux 4.11: only what has a path needs it.
    link = os.readlink(f"/proc/self/fd/{fd}")
    if link.startswith("pipe:[") or link in HARMLESS:
        return
    if not link.startswith("/") or not stat.S_ISFIFO(kind_of(fd)[0]):
        raise KdbusError(errno.EINVAL)
