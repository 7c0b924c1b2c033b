"""A client's descriptors: looked at, and taken where that is of use.

Invariant: a descriptor whose file belongs to a file system that may ask its client (FUSE: ours, or
a hostile one) is never opened, read or closed here: what it is, is told by a descriptor of its path
alone, for which nobody is asked. Memfds are opened anew, so they are what was looked at.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable

from jitney.broker.kdbus.errors import KdbusError

from ..descriptors import FdHandle, kind_of, need_harmless, need_payload

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_PIDFD_GETFD = 438


class Told(FdHandle):
    """Stands for a descriptor that was looked at and not taken: nobody could be given it."""

    def __init__(self) -> None:
        super().__init__(-1, lambda fd: None)


def _memfd_device() -> int:
    try:
        fd = os.memfd_create("jitney")
    except OSError as error:
        # Then no file is one.
        raise KdbusError(errno.EMEDIUMTYPE) from error
    try:
        return kind_of(fd)[1]
    finally:
        os.close(fd)


class Descriptors:
    """Those of one thread. `own_device`: of our mount; `close` gets rid of what was taken."""

    memfd_device: int | None = None

    def __init__(self, tid: int, own_device: int, close: Callable[[int], None]) -> None:
        self.tid = tid
        self.own_device = own_device
        self.close = close

    def path_to(self, number: int) -> int:
        """A descriptor of the path alone; to close it asks nobody either."""
        if number < 0:
            raise KdbusError(errno.EBADF)
        try:
            return os.open(f"/proc/{self.tid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        except PermissionError as error:
            raise KdbusError(errno.EPERM) from error
        except OSError as error:
            raise KdbusError(errno.EBADF) from error

    def kind(self, number: int) -> tuple[int, int]:
        fd = self.path_to(number)
        try:
            return kind_of(fd)
        finally:
            os.close(fd)

    def line(self, file: str, number: int, field: bytes) -> bytes:
        try:
            with open(f"/proc/{self.tid}/{file}/{number}", "rb", 0) as info:
                text = info.read(4096)
        except OSError as error:
            raise KdbusError(errno.EBADF) from error
        at = text.index(field) + len(field)
        return text[at : text.index(b"\n", at)].strip()

    def get(self, number: int) -> int:
        """The descriptor itself; for what does not ask anybody when it is closed.

        EOPNOTSUPP before Linux 5.6, where one process cannot take another's."""
        try:
            with open(f"/proc/{self.tid}/status", "rb", 0) as file:
                status = file.read(4096)
            at = status.index(b"\nTgid:\t") + 7
            pidfd = os.pidfd_open(int(status[at : status.index(b"\n", at)]))
        except (OSError, ValueError) as error:
            raise KdbusError(_refusal(getattr(error, "errno", None))) from error
        try:
            fd = _syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd < 0:
            raise KdbusError(_refusal(ctypes.get_errno()))
        return int(fd)

    def take(self, number: int, passed: bool) -> FdHandle:
        """For an FDS item. As kdbus: neither its own descriptors nor sockets that could carry
        others; of its own and others a path alone may be sent."""
        mode, device = self.kind(number)
        if device == self.own_device or stat.S_ISSOCK(mode):
            path_only = int(self.line("fdinfo", number, b"flags:"), 8) & os.O_PATH
            if not path_only and (device == self.own_device or self.is_unix(number)):
                raise KdbusError(errno.EOPNOTSUPP)
        return FdHandle(self.get(number), self.close) if passed else Told()

    def is_unix(self, number: int) -> bool:
        try:
            name = os.readlink(f"/proc/{self.tid}/fd/{number}")
            with open(f"/proc/{self.tid}/net/unix", "rb") as table:
                inode = name[8:-1].encode()
                return any(inode in line.split(None, 7)[6:7] for line in table)
        except OSError as error:
            raise KdbusError(errno.EBADF) from error

    def take_memfd(self, number: int, start: int, size: int) -> FdHandle:
        if Descriptors.memfd_device is None:
            Descriptors.memfd_device = _memfd_device()
        path = self.path_to(number)
        try:
            if kind_of(path)[1] != Descriptors.memfd_device:
                raise KdbusError(errno.EMEDIUMTYPE)
            try:
                fd = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise KdbusError(errno.EPERM) from error
        finally:
            os.close(path)
        handle = FdHandle(fd, os.close)
        try:
            need_payload(fd, start, size)
        except KdbusError:
            handle.drop()
            raise
        return handle

    def take_cancel(self, number: int) -> FdHandle:
        """What a synchronous call is cancelled with: an eventfd, a pipe or the like. What waits
        for others in its turn, or may last to close, is not taken: EINVAL."""
        path = self.path_to(number)
        try:
            need_harmless(path)
        finally:
            os.close(path)
        handle = FdHandle(self.get(number), self.close)
        try:
            # It may be another one by now.
            need_harmless(handle.fd)
        except KdbusError:
            handle.drop()
            raise
        return handle


def _refusal(number: int | None) -> int:
    """What a client is told when its descriptor cannot be had."""
    if number == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return errno.EPERM if number == errno.EPERM else errno.EBADF
