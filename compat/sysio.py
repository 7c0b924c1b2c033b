"""System calls of the transport: receive, send, poll - the plain Python twin of `sysio.pyx`.

Invariant: same names, same meaning as the compiled module: nothing here raises for what the
kernel says; results are counts, failures are negative errno values.
"""

from __future__ import annotations

import array
import errno
import socket
import time
from collections.abc import Iterable
from typing import Any

from . import ways

COMPILED = False

MAX_FDS = 253
MAX_VECTORS = 64
WIDE = 1 << 20  # cut by the kernel to its net.core.wmem_max
READABLE = ways.IN
WRITABLE = ways.OUT
HUNG_UP = ways.HANG_UP | ways.ERROR
_MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # Python ignores SIGPIPE itself

_LONGEST = 1024  # all that socket.getsockopt() is willing to fetch

_sockets: dict[int, socket.socket] = {}


def attach(sock: socket.socket) -> int:
    """Takes over a socket object; its descriptor, by which this module is called from now on."""
    fd = sock.fileno()
    _sockets[fd] = sock
    return fd


def accept_one(fd: int) -> int:
    """A connection to the listening socket, non-blocking and close-on-exec; or -errno."""
    listening = _sockets.get(fd)
    borrowed = None
    if listening is None:
        listening = borrowed = socket.socket(fileno=fd)
    try:
        sock, _address = listening.accept()
    except OSError as error:
        return -(error.errno or errno.EIO)
    finally:
        if borrowed is not None:
            borrowed.detach()
    sock.setblocking(False)
    return attach(sock)


def widen(fd: int) -> None:
    """Asks for as large a send buffer as the system gives anybody."""
    try:
        _sockets[fd].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WIDE)
    except OSError:
        pass


def close_socket(fd: int) -> None:
    """Closes a socket that came from `accept_one()` or `attach()`."""
    sock = _sockets.pop(fd, None)
    try:
        if sock is not None:
            sock.close()
    except OSError:
        pass


def option(fd: int, number: int, size: int) -> bytes | int:
    """Up to `size` bytes of a socket option of level SOL_SOCKET, or the errno as an int."""
    try:
        if size > _LONGEST:
            return _long_option(fd, number, size)
        return _sockets[fd].getsockopt(socket.SOL_SOCKET, number, size)
    except KeyError:
        return errno.EBADF
    except OSError as error:
        return error.errno or errno.EIO


def _long_option(fd: int, number: int, size: int) -> bytes | int:
    """The same by way of the C library: Python's getsockopt() stops at 1024 bytes."""
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(size)
        n = ctypes.c_uint(size)
        failed = library.getsockopt(fd, socket.SOL_SOCKET, number, buffer, ctypes.byref(n))
    except (ImportError, OSError, AttributeError):
        return errno.ENOSYS
    return ctypes.get_errno() if failed else buffer.raw[: n.value]


def now() -> int:
    """Microseconds on a clock that only goes forward."""
    return time.monotonic_ns() // 1000


class Intake:
    """What a receive brought besides bytes."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.truncated = False

    def recv(
        self, fd: int, p: bytearray, off: int, n: int, with_fds: bool, p2: bytearray, n2: int
    ) -> int:
        """Receives up to n bytes at p+off and, behind them, n2 at p2.

        Bytes, 0 at the end, or -errno."""
        views = [memoryview(p)[off : off + n]]
        if n2:
            views.append(memoryview(p2)[:n2])
        try:
            got, control, flags, _ = _sockets[fd].recvmsg_into(
                views,
                # Without room for them the kernel closes descriptors that nobody may send here.
                socket.CMSG_SPACE(MAX_FDS * 4) if with_fds else 0,
                socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0),
            )
        except OSError as error:
            return -(error.errno or errno.EIO)
        finally:
            for view in views:
                view.release()
        self.truncated = with_fds and bool(flags & socket.MSG_CTRUNC)
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self.fds.extend(numbers)
        return got


class Outlet:
    """A gathered send: `start()`, any number of `add()`, `send()`."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.fds: Iterable[int] | None = None

    def start(self, fds: Iterable[int] | None) -> None:
        self.parts.clear()
        self.size = 0
        self.fds = fds

    def add(self, p: bytes | bytearray, off: int, n: int) -> bool:
        """False when no more fits."""
        if len(self.parts) == MAX_VECTORS:
            return False
        self.parts.append(bytes(p[off : off + n]))
        self.size += n
        return True

    def send(self, fd: int) -> int:
        """Bytes sent, or -errno."""
        control = []
        if self.fds is not None:
            numbers = array.array("i", list(self.fds)[:MAX_FDS])
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())]
        self.fds = None
        try:
            return _sockets[fd].sendmsg(self.parts, control, socket.MSG_DONTWAIT | _MSG_NOSIGNAL)
        except OSError as error:
            return -(error.errno or errno.EIO)


def send_one(fd: int, p: bytes | bytearray, off: int, n: int) -> int:
    """One run of bytes without descriptors. Bytes sent, or -errno."""
    try:
        return _sockets[fd].send(bytes(p[off : off + n]), socket.MSG_DONTWAIT | _MSG_NOSIGNAL)
    except OSError as error:
        return -(error.errno or errno.EIO)


class Poller:
    """A level-triggered set, on Linux of epoll: a private one, itself watched by the event loop,
    or, with `shared` from `BusLoop.adopt()`, the event loop's own. `lock`: let go of while we
    sleep, see `jitney.kdbus.worlds.lock`; None where there are no other threads."""

    def __init__(self, shared: Any = None) -> None:
        self.shared = shared is not None
        self.epoll = ways.poll_set(shared)
        self.ready: list[tuple[int, int]] = []
        self.lock: Any = None

    def close(self) -> None:
        self.epoll.close()

    def watch(self, loop: Any, ready: Any) -> None:
        """The loop calls `ready()` when something in our own set is."""
        ways.watch(self.epoll, loop, ready)

    def unwatch(self, loop: Any) -> None:
        ways.unwatch(self.epoll, loop)

    def add(self, fd: int) -> int:
        """0, or -1 if the kernel has no room for it (ENOMEM, ENOSPC)."""
        try:
            self.epoll.register(fd, READABLE)
        except OSError:
            return -1
        return 0

    def modify(self, fd: int, readable: bool, writable: bool) -> int:
        try:
            self.epoll.modify(fd, (READABLE if readable else 0) | (WRITABLE if writable else 0))
        except OSError:
            return -1
        return 0

    def remove(self, fd: int) -> int:
        try:
            self.epoll.unregister(fd)
        except OSError:
            return -1
        return 0

    def shut(self, fd: int) -> None:
        """Closes a socket that is in the set. To close it alone would leave it there while a child
        of ours has it as well."""
        self.remove(fd)
        close_socket(fd)

    def wait(self, timeout: int) -> int:
        """How many descriptors are ready within `timeout` milliseconds (-1: however long it takes);
        -1 if a signal came first."""
        if self.lock is not None:
            self.lock.release()
        try:
            self.ready = self.epoll.poll(-1 if timeout < 0 else timeout / 1000, 256)
        except OSError:
            self.ready = []
            return -1
        finally:
            if self.lock is not None:
                self.lock.retake()
        return len(self.ready)

    def spin(self, microseconds: int) -> int:
        """wait() without going to sleep, for so long; not at all where others want the lock."""
        if self.lock is not None:
            return self.wait(0)
        until = now() + microseconds
        while True:
            n = self.wait(0)
            if n > 0 or now() >= until:
                return n

    def fd_at(self, i: int) -> int:
        return self.ready[i][0]

    def events_at(self, i: int) -> int:
        return self.ready[i][1]
