"""One side of the calls that `jitney.bench kdbus` measures, as a process of its own.

Invariant: set-up is Python, each call is compiled (`rpc`). Both print how they are called. A
service then answers whatever comes (a classic one reads first who will call); a caller reads lines
"SIZE COUNT" and answers each with the latencies in nanoseconds. Both end when their input or their
connection does.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys
import threading
from pathlib import Path

from . import wire
from .rpc import Buffer, Ioctls, Native, classic_calls, classic_serve, command
from .unnamed import unnamed

POOL = 128 << 20
OUTBOX = 4 << 20
BODIES = 1 << 24
ANSWER = 64
"""Bytes that a service answers with, whatever it was sent."""
IN_FRAME = 60 * 1024
VEC_MAX = 2 << 20

EXPECT_REPLY, SYNC, QUIET = 1, 1, 1
VEC, MEMFD = 2, 4
OP_HELLO, OP_SEND, OP_OUTBOX = 0x80, 0x90, 0x102
IOCTL_HELLO = 0xC0609580
FRAME_HEAD = struct.Struct("<IHHIIII")
MESSAGE = struct.Struct("<QQqQQQQQ")


def body(size: int) -> bytes:
    return wire.byte_array(size)[4:]


def item(kind: int, data: bytes) -> bytes:
    return struct.pack("<QQ", 16 + len(data), kind) + data + bytes(-len(data) & 7)


def message(dst: int, flags: int, items: bytes) -> bytes:
    return MESSAGE.pack(64 + len(items), flags, 0, dst, 0, 1, 0, 0) + items


def memfd_of(data: bytes) -> int:
    """Sealed, as kdbus wants it."""
    fd = os.memfd_create("jitney-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
    )
    return fd


def orders() -> list[tuple[int, int]]:
    """The next line of standard input: size and count; nothing at the end."""
    line = sys.stdin.readline().split()
    return [(int(line[0]), int(line[1]))] if len(line) == 2 else []


def tell(times: list[int]) -> None:
    print(*times, flush=True)


# A classic bus


def classic(path: str) -> tuple[socket.socket, bytes]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(wire.auth_lines(False) + wire.hello())
    data = b""
    while True:
        data += sock.recv(4096)
        name = wire.parse_string_reply(data.partition(b"\r\n")[2], 1)[0]
        if name is not None:
            break
    # Then NameAcquired.
    if b"NameAcquired" not in data:
        sock.recv(4096)
    return sock, name


def classic_caller(path: str, to: str) -> None:
    sock, name = classic(path)
    print(name.decode(), flush=True)
    serial = 10
    reply_at = 16 + 4
    while line := orders():
        size, count = line[0]
        data = wire.call(to.encode(), b"Take", b"ay", wire.byte_array(size))
        times: list[int] = []
        serial = classic_calls(
            sock.fileno(), Buffer(data), size + 4, reply_at, serial, times, count
        )
        tell(times)


def classic_service(path: str) -> None:
    sock, name = classic(path)
    print(name.decode(), flush=True)
    # A classic answer has to say to whom it goes.
    peer = sys.stdin.readline().strip()
    data, reply_at = wire.reply(peer.encode(), b"ay", wire.byte_array(ANSWER))
    classic_serve(sock.fileno(), Buffer(data), reply_at, Buffer(body(BODIES)))


# kdbus's format over a socket


class NativeHandle:
    """A handle past HELLO, with its pool mapped."""

    def __init__(self, path: str, credit: int, accepts: bool) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(path)
        hello = struct.pack("<12Q", 96, accepts, 0, 0, 0, 0, 0, POOL, 0, 0, 0, 0)
        data, fds = self.ask(OP_HELLO, hello, credit=credit)
        self.id = struct.unpack_from("<Q", data, 24 + 48)[0]
        self.greeting = struct.unpack_from("<Q", data, 24 + 64)[0]
        self.pool = mmap.mmap(fds[0], POOL, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fds[0])

    def ask(
        self, op: int, data: bytes, fds: list[int] | None = None, credit: int = 0
    ) -> tuple[bytes, list[int]]:
        frame = FRAME_HEAD.pack(24 + len(data), op, 0, 1, 0, credit, 0) + data
        socket.send_fds(self.sock, [frame], fds or [])
        answer, got, _, _ = socket.recv_fds(self.sock, 65536, 4)
        error = struct.unpack_from("<I", answer, 12)[0]
        if error:
            raise OSError(error, os.strerror(error))
        return answer, got

    def frame(
        self, flags: int, sync: int, credit: int, items: bytes, data: bytes, dst: int
    ) -> tuple[Buffer, int]:
        """A request with one offset to free, and where its message is."""
        at = 24 + 8 + 56
        packed = message(dst, flags, items)
        size = at + len(packed) + len(data)
        head = FRAME_HEAD.pack(size, OP_SEND, 0 if sync else QUIET, 0, 1, credit, 0)
        head += bytes(8) + struct.pack("<7Q", 56, sync, 0, at, 0, 0, 0)
        return Buffer(head + packed + data), at


def native_caller(path: str, to: str) -> None:
    handle = NativeHandle(path, 0, False)
    small, large = map(int, to.split(","))
    box = unnamed()
    os.ftruncate(box, OUTBOX)
    outbox = mmap.mmap(box, OUTBOX)
    handle.ask(OP_OUTBOX, b"", [box])
    print(handle.id, flush=True)
    freed, serial = handle.greeting, 10
    while line := orders():
        size, count = line[0]
        data, place, memfd = b"", 0, -1
        if size > VEC_MAX:
            memfd = memfd_of(body(size))
            items = item(MEMFD, struct.pack("<QQiI", 0, size, 0, 0))
        elif size > IN_FRAME:
            place = ctypes.addressof(ctypes.c_char.from_buffer(outbox))
            items = item(VEC, struct.pack("<QQ", size, 1 << 63))
        else:
            data = body(size)
            items = item(VEC, struct.pack("<QQ", size, 24 + 8 + 56 + 64 + 32))
        dst = large if memfd >= 0 else small
        frame, at = handle.frame(EXPECT_REPLY, SYNC, 0, items, data, dst)
        link = Native(handle.sock.fileno(), handle.pool, frame, at, freed, serial, False)
        times: list[int] = []
        link.calls(Buffer(body(size)), place, size, memfd, times, count)
        freed, serial = link.freed, link.last_serial
        if memfd >= 0:
            os.close(memfd)
        tell(times)


def native_service(path: str) -> None:
    # Only who takes memfds has to look for descriptors; the classic service does not, either.
    handles = [NativeHandle(path, 16, accepts) for accepts in (False, True)]
    print(*[handle.id for handle in handles], sep=",", flush=True)
    want = Buffer(body(BODIES))
    data = body(ANSWER)
    items = item(VEC, struct.pack("<QQ", ANSWER, 24 + 8 + 56 + 64 + 32))
    links = []
    for handle, accepts in zip(handles, (False, True), strict=True):
        frame, at = handle.frame(0, 0, 1, items, data, 0)
        fd = handle.sock.fileno()
        links.append(Native(fd, handle.pool, frame, at, 0, 10, accepts))
    threading.Thread(target=links[1].serve, args=(want,), daemon=True).start()
    links[0].serve(want)


# kdbus's ioctls


def opened(path: str) -> tuple[int, int, mmap.mmap]:
    """(descriptor, id, pool)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    hello = struct.pack("<12Q", 96, 1, 0, 0, 0, 0, 0, POOL, 0, 0, 0, 0)
    data = command(fd, IOCTL_HELLO, hello)
    pool = mmap.mmap(fd, POOL, mmap.MAP_SHARED, mmap.PROT_READ)
    return fd, struct.unpack_from("<Q", data, 48)[0], pool


def ioctl_caller(path: str, to: str) -> None:
    fd, number, pool = opened(path)
    print(number, flush=True)
    cookie = 10
    while line := orders():
        size, count = line[0]
        data = Buffer(body(size))
        memfd = memfd_of(body(size)) if size > VEC_MAX else -1
        if memfd >= 0:
            items = item(MEMFD, struct.pack("<QQiI", 0, size, memfd, 0))
        else:
            items = item(VEC, struct.pack("<QQ", size, data.at))
        link = Ioctls(fd, pool, Buffer(message(int(to), EXPECT_REPLY, items)))
        times: list[int] = []
        cookie = link.calls(data, memfd < 0, times, count, cookie)
        if memfd >= 0:
            os.close(memfd)
        tell(times)


def ioctl_service(path: str) -> None:
    fd, number, pool = opened(path)
    print(number, flush=True)
    data = Buffer(body(ANSWER))
    items = item(VEC, struct.pack("<QQ", ANSWER, data.at))
    link = Ioctls(fd, pool, Buffer(message(0, 0, items)))
    link.serve(Buffer(body(BODIES)))


def main() -> None:
    kind, path, *to = sys.argv[1:]
    Path("/proc/self/comm").write_text(kind[:15])
    globals()[kind](path, *to)


if __name__ == "__main__":
    main()
