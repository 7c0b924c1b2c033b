"""The kit of kdbuskit.py over FUSE, as far as commands go: a mounted kdbusfs in place of the core.

Invariant: a client's memory is real here, and ends where the kit's does: behind each piece of it is
a page that cannot be read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdbuskit import Client, World
from kdbusmount import Errno, ioctl_at
from kdbusnative import AsUser
from waiting import until

from jitney.broker.kdbus.metadata import Creds

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE


class RealMemory:
    """Pieces of this process's memory."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def put(self, data: bytes) -> int:
        pages = -(-len(data) // PAGE) * PAGE
        area = mmap.mmap(-1, pages + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        at = pages - (len(data) + 7) // 8 * 8
        area[at : at + len(data)] = data
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        _libc.mprotect(base + pages, PAGE, 0)
        self.pieces.append(area)
        return base + at

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)


class FuseClient(Client):
    """An open node of the mounted tree."""

    def __init__(self, path: Path, uid: int = 0, groups: tuple[int, ...] = ()) -> None:
        self.creds = Creds(uid, uid, uid, groups)
        self.memory: Any = RealMemory()
        self.id = 0
        with AsUser(uid, groups):
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, name: str, data: bytes, address: int | None = None) -> tuple[int, bytes]:
        where = self.memory.put(data) if address is None else address
        number = 0
        with AsUser(self.creds.uid, tuple(self.creds.groups)):
            try:
                ioctl_at(self.fd, name, where)
            except Errno as error:
                number = error.errno
        return number, self.memory.read(where, len(data))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FuseWorld(World):
    """A bus of uid 0 on a mounted tree, which other tests use before and after."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bus: Any = SimpleNamespace(default=root / "0-test" / "bus", endpoints=self)
        self.clients: list[FuseClient] = []
        # The kernel tells of a closed descriptor a moment later, and a bus goes only then.
        until(lambda: os.listdir(root) == ["control"], "the last bus is gone")
        self.domain: Any = SimpleNamespace(buses={b"0-test": self.bus})
        self.begin()

    def __getitem__(self, name: bytes) -> Path:
        return self.root / "0-test" / os.fsdecode(name)

    def at(self, endpoint: Any, **more: Any) -> Any:
        client = FuseClient(endpoint if endpoint is not None else self.root / "control", **more)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
