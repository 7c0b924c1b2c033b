"""Helpers for tests over FUSE: a mounted kdbusfs, and a small client of compiled programs' kind.

Invariant: what is mounted here is taken away again, whatever a test did: the daemon has a time to
live, after which the kernel frees everybody who waits for it. Run as a program with the name of one
of its functions, this file is a client in a process of its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreground import TIME_TO_LIVE, foreground
from foreground import Served as Mounted
from kdbuskit import Errno, Got, command, item, message, text, u64
from waiting import comes

from jitney.broker.kdbus import constants as c
from jitney.kdbus import uapi

POOL = 1 << 20
ASK_NOTHING = "JITNEY_TESTS_ASK_NOTHING"
"""In the environment: peers do not ask for metadata, so that messages go the short way."""

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0:
        return "only tried as root"
    return ""


@contextmanager
def mounted(
    path: Path, pool: str = "auto", watchdog: float = 10.0, time_to_live: int = TIME_TO_LIVE
) -> Iterator[Mounted]:
    path.mkdir(exist_ok=True)
    words = ("--pool", pool, "--watchdog", str(watchdog))
    try:
        # A daemon that is killed, as some of these are, says so in its own way.
        with foreground("mount", path, *words, quiet=False, time_to_live=time_to_live) as running:
            yield running
    finally:
        if not comes(lambda: not is_mounted(path)):
            _libc.umount2(os.fsencode(path), 3)
            raise AssertionError("the daemon left its mount behind")


def is_mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def ioctl(fd: int, name: str, data: bytes) -> bytes:
    """One command, as C would give it; the command as it is afterwards."""
    buffer = ctypes.create_string_buffer(data, len(data))
    ioctl_at(fd, name, ctypes.addressof(buffer))
    return buffer.raw


def ioctl_at(fd: int, name: str, address: int) -> None:
    number = uapi.BY_NAME[name].ioctl
    if _libc.ioctl(fd, ctypes.c_ulong(number), ctypes.c_void_p(address)) < 0:
        raise Errno(ctypes.get_errno())


class Bus:
    """A bus, as long as it is open."""

    def __init__(self, root: Path, name: str = "test") -> None:
        self.control = os.open(root / "control", os.O_RDWR | os.O_CLOEXEC)
        full = f"{os.geteuid()}-{name}"
        items = text(c.ITEM_MAKE_NAME, full.encode()) + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1))
        ioctl(self.control, "BUS_MAKE", command("BUS_MAKE", c.ACCESS_WORLD, items=items))
        self.path = root / full / "bus"

    def close(self) -> None:
        os.close(self.control)


class Peer:
    """A connection with its pool mapped."""

    def __init__(self, path: Path, flags: int = c.HELLO_ACCEPT_FD, items: bytes = b"") -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        asked = 0 if ASK_NOTHING in os.environ else c.ATTACH_ALL
        fields = u64(c.ATTACH_ALL, asked, 0, 0, POOL)
        data = ioctl(self.fd, "HELLO", command("HELLO", flags, fields, items))
        self.id = struct.unpack_from("<Q", data, 48)[0]
        self.map = mmap.mmap(self.fd, POOL, mmap.MAP_SHARED, mmap.PROT_READ)
        offset, size = struct.unpack_from("<QQ", data, 64)
        self.greeting = self.map[offset : offset + size]
        self.do("FREE", 0, u64(offset))

    def do(self, name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
        return ioctl(self.fd, name, command(name, flags, fields, items))

    def send_at(self, address: int, flags: int = 0, items: bytes = b"") -> bytes:
        return self.do("SEND", flags, u64(address), items)

    def send(self, data: bytes, flags: int = 0, items: bytes = b"") -> bytes:
        buffer = ctypes.create_string_buffer(data, len(data))
        return self.send_at(ctypes.addressof(buffer), flags, items)

    def say(self, to: int, payload: bytes, **fields: int) -> bytes:
        buffer = ctypes.create_string_buffer(payload, len(payload))
        vec = item(c.ITEM_PAYLOAD_VEC, u64(len(payload), ctypes.addressof(buffer)))
        return self.send(message(to, vec, **fields))

    def recv(self, flags: int = 0, wait: float = 5.0) -> Got:
        self.wait(wait)
        data = self.do("RECV", flags)
        self.return_flags, _, self.lost, offset, size, self.msg_flags = struct.unpack_from(
            "<QqQQQQ", data, 16
        )
        got = Got(self.map[offset : offset + size])
        self.do("FREE", 0, u64(offset))
        return got

    def wait(self, seconds: float = 5.0) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise Errno(errno.ETIMEDOUT)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


def answered(bus: Path) -> bool:
    """Whether two others can talk to each other on this bus."""
    a, b = Peer(bus), Peer(bus)
    a.say(b.id, b"are you there", cookie=5, flags=c.EXPECT_REPLY, timeout=1 << 62)
    b.recv()
    b.say(a.id, b"I am", timeout=5)
    right = a.recv().payload == b"I am"
    a.close()
    b.close()
    return right


# Clients in processes of their own


def _map_pool(peer: Peer) -> tuple[Any, int]:
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    ]  # fmt: skip
    return peer, _libc.mmap(None, POOL, 1, 1, peer.fd, 0)


def self_pool(path: str, to: str) -> None:
    """Sends pages of its own pool that it has never looked at."""
    peer = Peer(Path(path))
    for turn in range(4):
        _, address = _map_pool(peer)
        vec = item(c.ITEM_PAYLOAD_VEC, u64(32 * 1024, address + POOL // 2 + 32 * 1024 * turn))
        print("sending", flush=True)
        peer.send(message(int(to), vec))
    print("sent", flush=True)


def userfaults(path: str, to: str, threads: str = "1", payload: str = "4096") -> None:
    """Sends pages for which it would have to answer itself, and never does."""
    import threading

    fd = _libc.syscall(323, os.O_CLOEXEC)
    if fd < 0:
        print("no userfaultfd", flush=True)
        return
    api = ctypes.create_string_buffer(struct.pack("=QQQ", 0xAA, 0, 0))
    assert _libc.ioctl(fd, ctypes.c_ulong(0xC018AA3F), api) == 0
    size = 1 << 20
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    registered = ctypes.create_string_buffer(struct.pack("=QQQQ", address, size, 1, 0))
    assert _libc.ioctl(fd, ctypes.c_ulong(0xC020AA00), registered) == 0

    def one() -> None:
        try:
            peer = Peer(Path(path))
            vec = item(c.ITEM_PAYLOAD_VEC, u64(int(payload), address))
            # In one go: threads that print mix up their lines.
            os.write(1, b"sending\n")
            peer.send(message(int(to), vec))
        except Errno as error:
            os.write(1, f"{error}\n".encode())

    workers = [threading.Thread(target=one) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    del area


def sync_call(path: str, to: str) -> None:
    """Waits for an answer, a long time."""
    peer = Peer(Path(path))
    print("calling", flush=True)
    try:
        data = message(int(to), flags=c.EXPECT_REPLY, cookie=3, timeout=1 << 62)
        peer.send(data, c.SEND_SYNC_REPLY)
        print("answered", flush=True)
    except Errno as error:
        print(error, flush=True)


def reader(path: str) -> None:
    """Waits in poll() for something to come."""
    peer = Peer(Path(path))
    peer.do("MATCH_ADD", 0, u64(1))
    print(peer.id, flush=True)
    try:
        peer.wait(60)
        print("read", peer.recv().payload, flush=True)
    except (Errno, OSError) as error:
        print(type(error).__name__, flush=True)


def client(*words: str, count: int = 1) -> subprocess.Popen[bytes]:
    """One of the functions above, in a process of its own that has printed its first line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Unbuffered: what communicate() reads later must not be in our hands by then.
    process = subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, env=environment, bufsize=0
    )
    assert process.stdout is not None
    process.first = process.stdout.readline()  # type: ignore[attr-defined]
    return process


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
