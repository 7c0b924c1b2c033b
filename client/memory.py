"""Memory: the pool that the bus writes to, the outbox that it reads from, and sealed memfds.

Invariant: the pool is mapped for reading and a slice in it is ours until its offset was given back,
once. Bytes in the outbox stay as they are until a request that used them, or a later one, was
answered (docs/native.md). A memfd that is handed on is sealed, and says the same for ever.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
PAGE = mmap.PAGESIZE

Data = bytes | bytearray | memoryview


def as_bytes(data: Data) -> memoryview:
    """Any buffer as bytes; TypeError for one that is not contiguous."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class Pool:
    """The mapped pool; closing it is left to the last view of a message."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.view = memoryview(self.map)
        self.frees: list[int] = []

    def slice(self, offset: int, size: int) -> memoryview:
        return self.view[offset : offset + size]

    def done_with(self, offset: int) -> None:
        self.frees.append(offset)

    def take_frees(self, most: int) -> tuple[int, ...]:
        """What to give back with the next frame."""
        frees = tuple(self.frees[:most])
        del self.frees[:most]
        return frees

    def close(self) -> None:
        self.view.release()
        try:
            self.map.close()
        except BufferError:
            pass  # somebody still looks at a message; the last view unmaps it


def _shared() -> int:
    """A memfd; before Linux 3.17 a file of a tmpfs without a name, which the bus takes as well."""
    try:
        return os.memfd_create("jitney-outbox", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        for folder in ("/dev/shm", os.environ.get("XDG_RUNTIME_DIR")):
            if folder and os.access(folder, os.W_OK):
                with tempfile.TemporaryFile(dir=folder) as file:
                    return os.dup(file.fileno())
        raise


class Outbox:
    """A ring of memory that both sides have mapped, for payload that does not fit a frame."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = _shared()
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        # (serial, where its bytes end) of requests that were not answered, the oldest first.
        self.held: deque[tuple[int, int]] = deque()
        self.head = 0
        self.tail = 0

    def place(self, size: int) -> int | None:
        """Where so many bytes may be written now; None if there is no room."""
        if not self.held:
            self.head = self.tail = 0
        head, tail = self.head, self.tail
        # Never up to `tail`: head == tail means that all is free.
        if head >= tail:
            if size <= self.size - head:
                return head
            return 0 if size < tail else None
        return head if size < tail - head else None

    def write(self, parts: Sequence[memoryview], size: int) -> int | None:
        """Puts the parts one after the other; where they are, or None if there is no room."""
        at = start = self.place(size)
        if at is None:
            return None
        for part in parts:
            self.map[at : at + len(part)] = part
            at += len(part)
        self.head = at
        return start

    def hold(self, serial: int) -> None:
        """What was written last belongs to this request."""
        self.held.append((serial, self.head))

    def answered(self, serial: int) -> None:
        """That request was; so the bus has read it, and all before it."""
        held = self.held
        # Serials begin anew after the last one.
        while held and (serial - held[0][0]) & 0xFFFF_FFFF < 1 << 31:
            self.tail = held.popleft()[1]

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class Memfd:
    """A sealed memfd, or a part of one, as payload that nobody has to copy.

    It owns the descriptor; `close()` is for who made it, sending does not close it."""

    def __init__(self, fd: int, start: int = 0, size: int | None = None) -> None:
        self.fd = fd
        self.start = start
        self.size = os.fstat(fd).st_size - start if size is None else size

    def __enter__(self) -> Memfd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def sealed(*parts: Data) -> Memfd:
    """A memfd with these bytes in it, sealed as kdbus asks; ENOSYS where there are none."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fd = os.memfd_create("jitney-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            view = as_bytes(part)
            while len(view):
                view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        return Memfd(fd)
    except BaseException:
        os.close(fd)
        raise


class Mapped:
    """A part of a memfd that came, mapped for reading."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        skip = start % PAGE
        self.map = mmap.mmap(fd, size + skip, mmap.MAP_SHARED, mmap.PROT_READ, offset=start - skip)
        self.whole = memoryview(self.map)
        self.view = self.whole[skip : skip + size]

    def close(self) -> None:
        self.view.release()
        self.whole.release()
        try:
            self.map.close()
        except BufferError:
            pass  # somebody kept a view of it
