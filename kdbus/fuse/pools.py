"""Pools that a client can map: two ways to get bytes into its pages.

Invariant: what a client sees at a published slice is what the bus wrote there before. With a
backing file (`Passthrough`) both sides map the same memfd; needs Linux 6.9 and CAP_SYS_ADMIN in the
first user namespace. With `Store` the bus keeps the bytes and puts them into the client's page
cache when a slice is published; works everywhere, for one more copy. FUSE cannot forbid a writable
mapping: a client can spoil its own pool, and nothing is ever decided by what is in one.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from typing import Any

from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.pool import put

from . import protocol as p

POOL_MAX = 1 << 34
"""Pages are only there when something was written to them, but addresses are not endless."""


class _Mapped:
    """What is written to through a mapping of ours, `map`."""

    map: mmap.mmap | None = None

    def write(self, offset: int, parts: Iterable[Any]) -> None:
        assert self.map is not None
        put(self.map, offset, parts)

    def whole(self) -> Any:
        """What can be written to directly."""
        return self.map

    def close(self) -> None:
        # The client may have it mapped for as long as it likes; it pays for the memory itself.
        if self.map is not None:
            try:
                self.map.close()
            except BufferError:
                pass  # a copy is under way; the last reference frees it
            self.map = None


class Backing(_Mapped):
    """A file's memory that FUSE passes through to; made when the node is opened, sized at HELLO."""

    trusted = False

    def __init__(self, device: int) -> None:
        self.device = device
        self.fd = os.memfd_create("jitney-kdbus", os.MFD_CLOEXEC)
        try:
            # With a mutable buffer the result is the kernel's, which is the file's number.
            self.id = fcntl.ioctl(
                device, p.BACKING_OPEN, bytearray(struct.pack("=iIQ", self.fd, 0, 0))
            )
        except OSError:
            os.close(self.fd)
            raise

    def resize(self, size: int) -> None:
        if size > POOL_MAX:
            raise KdbusError(errno.ENOMEM)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)

    def read(self, offset: int, size: int) -> bytes:
        assert self.map is not None
        return self.map[offset : offset + size]

    def publish(self, offset: int, size: int) -> None:
        """Nothing to do: it is there."""

    def release(self) -> None:
        self.close()
        if self.fd >= 0:
            fcntl.ioctl(self.device, p.BACKING_CLOSE, struct.pack("=I", self.id))
            os.close(self.fd)
            self.fd = -1


class Store(_Mapped):
    """Bytes that the bus keeps, and copies into the page cache of the client's inode."""

    trusted = True

    def __init__(self, device: int, node: int) -> None:
        self.device = device
        self.node = node
        self.size = 0

    def resize(self, size: int) -> None:
        if size > POOL_MAX:
            raise KdbusError(errno.ENOMEM)
        self.size = size
        self.map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def read(self, offset: int, size: int) -> bytes:
        data = self.map
        return data[offset : offset + size] if data is not None else b""

    def publish(self, offset: int, size: int) -> None:
        """Puts a slice before the client's eyes. Blocks while the client has one of its pages
        being read, which another thread of ours answers."""
        data = self.map
        if data is None:
            return
        try:
            view = memoryview(data)
        except ValueError:
            return  # closed meanwhile: the client is gone
        try:
            for at in range(offset, offset + size, p.STORE_MAX):
                n = min(p.STORE_MAX, offset + size - at)
                head = p.OUT_HEADER.pack(
                    p.OUT_HEADER.size + p.STORE_OUT.size + n, p.NOTIFY_STORE, 0
                )
                body = p.STORE_OUT.pack(self.node, at, n, 0)
                try:
                    os.writev(self.device, (head, body, view[at : at + n]))
                except OSError:
                    return  # the inode is gone, and with it who would look
        finally:
            view.release()

    def close(self) -> None:
        super().close()
        self.size = 0

    def release(self) -> None:
        self.close()


def passthrough_works(device: int) -> bool:
    """Whether this connection may have backing files."""
    try:
        Backing(device).release()
    except OSError:
        return False
    return True
