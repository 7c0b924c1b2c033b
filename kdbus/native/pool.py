"""MappedPool: a connection's pool, which the bus writes to and its owner maps for reading.

Invariant: what was made here never shrinks under us, and its owner gets a descriptor that is open
for reading only. Where the kernel can promise that nobody else will ever write to it
(FUTURE_WRITE, Linux 5.1), the pool is `trusted`: it holds what the bus wrote.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import Any

from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.pool import put

POOL_MAX = 1 << 34

_ADD_SEALS = 1033
_SEAL, _SHRINK, _GROW, _FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10


class MappedPool:
    """`fd`: the descriptor for the owner."""

    def __init__(self, size: int) -> None:
        if size > POOL_MAX:
            raise KdbusError(errno.ENOMEM)
        self.trusted = False
        made = _memfd()
        if made >= 0:
            try:
                self.map = self.arrange(made, size)
                self.trusted = _seal(made)
                # Where the kernel knows no FUTURE_WRITE, no other user can open it for writing.
                os.fchmod(made, 0o400)
                self.fd = os.open(f"/proc/self/fd/{made}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(made)
        else:
            made, self.fd = _unnamed()
            try:
                self.map = self.arrange(made, size)
            except BaseException:
                os.close(self.fd)
                raise
            finally:
                os.close(made)

    def arrange(self, fd: int, size: int) -> mmap.mmap:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)

    def write(self, offset: int, parts: Iterable[Any]) -> None:
        put(self.map, offset, parts)

    def read(self, offset: int, size: int) -> bytes:
        return self.map[offset : offset + size]

    def whole(self) -> Any:
        """What can be written to directly."""
        return self.map

    def close(self) -> None:
        if self.fd >= 0:
            self.map.close()
            os.close(self.fd)
            self.fd = -1


def _memfd() -> int:
    """-1 where the system has none."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        return os.memfd_create("jitney-kdbus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return -1


def has_memfd() -> bool:
    fd = _memfd()
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _seal(fd: int) -> bool:
    """After mapping it, for our own mapping stays writable. Whether nobody else can write now."""
    future = True
    try:
        fcntl.fcntl(fd, _ADD_SEALS, _SHRINK | _GROW | _FUTURE_WRITE)
    except OSError:
        future = False
        fcntl.fcntl(fd, _ADD_SEALS, _SHRINK | _GROW)
    fcntl.fcntl(fd, _ADD_SEALS, _SEAL)
    return future


def _unnamed() -> tuple[int, int]:
    """A file without a name on a tmpfs, for writing and again for reading."""
    for folder in ("/dev/shm", os.environ.get("XDG_RUNTIME_DIR"), None):
        if folder is not None and not os.path.isdir(folder):
            continue
        try:
            fd, path = tempfile.mkstemp(prefix="jitney-kdbus-", dir=folder)
        except OSError:
            continue
        try:
            os.fchmod(fd, 0o400)
            return fd, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        finally:
            os.unlink(path)
    raise KdbusError(errno.ENOMEM)
