"""Programs of kdbus's kind, each a function here, to be run with the shim preloaded.

    LD_PRELOAD=.../libjitney-kdbus.so python shimclient.py FUNCTION DIRECTORY

Invariant: nothing here knows of sockets: these are opened nodes, ioctls and mapped pools, and would
run on kdbus as well. A function that returns has seen what it wanted to see.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from kdbuskit import Got, command, item, message, u64
from kdbusmount import POOL, Bus, Errno, Peer, ioctl
from shimkit import descriptors, fds_item, numbers_in, pair, readable, refused
from unnamed import sealed, unnamed

from jitney.broker.kdbus import constants as c

FOR_EVER = 1 << 62
CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
]  # fmt: skip
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FAILED = ctypes.c_void_p(-1).value


# Messages


def payloads(root: Path) -> None:
    """From one byte to the most there is, in the frame and in the outbox, and zeros."""
    _, a, b = pair(root)
    for size in (1, 7, 4000, 65000, 65400, 65536, 70001, 170_000, 150_000, 10):
        data = os.urandom(size)
        a.say(b.id, data)
        assert b.recv().payload == data, size
    parts = [ctypes.create_string_buffer(os.urandom(n), n) for n in (5, 60_000, 3, 40_000)]
    items = b"".join(
        item(c.ITEM_PAYLOAD_VEC, u64(len(part), ctypes.addressof(part))) for part in parts
    )
    a.send(message(b.id, items + item(c.ITEM_PAYLOAD_VEC, u64(9, 0))))
    assert b.recv().payload == b"".join(part.raw for part in parts) + bytes(9)
    refused(errno.EMSGSIZE, a.say, b.id, bytes((2 << 20) + 1))
    vec = item(c.ITEM_PAYLOAD_VEC, u64(1 << 60, 8))
    refused(errno.EMSGSIZE, a.send, message(b.id, vec * 2))
    refused(errno.EMSGSIZE, a.send, message(b.id, bytes(40_000)))
    refused(errno.EAGAIN, b.do, "RECV")
    a.say(b.id, b"and goes on")
    assert b.recv().payload == b"and goes on"


def frees(root: Path) -> None:
    _, a, b = pair(root)
    a.say(b.id, b"x")
    offset = struct.unpack_from("<Q", b.do("RECV"), 40)[0]
    b.do("FREE", 0, u64(offset))
    refused(errno.ENXIO, b.do, "FREE", 0, u64(offset))
    refused(errno.ENXIO, b.do, "FREE", 0, u64(8))


def negotiation(root: Path) -> None:
    bus = Bus(root)
    fd = os.open(bus.path, os.O_RDWR)
    asked = item(c.ITEM_NEGOTIATE, u64(c.ITEM_NAME, 12345, c.ITEM_CREDS))
    data = ioctl(fd, "HELLO", command("HELLO", c.NEGOTIATE, items=asked))
    assert struct.unpack_from("<Q", data, 8)[0] == c.HELLO_FLAGS
    assert data[96 + 16 :] == u64(c.ITEM_NAME, 0, c.ITEM_CREDS)
    peer = Peer(bus.path)
    asked = item(c.ITEM_NEGOTIATE, u64(c.ITEM_FDS, 77))
    envelope = ctypes.create_string_buffer(message(0, asked, flags=c.NEGOTIATE))
    data = peer.do("SEND", c.NEGOTIATE, u64(ctypes.addressof(envelope)))
    assert struct.unpack_from("<Q", data, 8)[0] == c.SEND_SYNC_REPLY
    assert struct.unpack_from("<Q", data, 24)[0] == ctypes.addressof(envelope)
    assert (
        struct.unpack_from("<Q", envelope.raw, 8)[0] == c.EXPECT_REPLY | c.NO_AUTO_START | c.SIGNAL
    )
    assert envelope.raw[80:96] == u64(c.ITEM_FDS, 0)


# Descriptors


def fds(root: Path) -> None:
    """They arrive, close-on-exec, and their numbers are in the pool."""
    _, a, b = pair(root)
    before = descriptors()
    reading, writing = os.pipe()
    a.send(message(b.id, fds_item(writing, reading)))
    os.close(writing)
    got = b.recv()
    assert b.msg_flags == 0
    sent, other = numbers_in(got)
    assert fcntl.fcntl(sent, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(sent, b"through")
    assert os.read(reading, 10) == b"through"
    for fd in (sent, other, reading):
        os.close(fd)
    assert descriptors() == before
    refused(errno.EBADF, a.send, message(b.id, fds_item(sent)))
    refused(errno.EBADF, a.send, message(b.id, fds_item(-1)))
    refused(errno.EOPNOTSUPP, a.send, message(b.id, fds_item(b.fd)))
    refused(errno.EMFILE, a.send, message(b.id, fds_item(*[0] * 17)))
    refused(errno.EMFILE, a.send, message(b.id, fds_item(*[0] * 300)))
    assert descriptors() == before


def fds_in_an_answer(root: Path) -> None:
    _, a, b = pair(root)
    reading, writing = os.pipe()

    def answer() -> None:
        call = b.recv()
        b.send(message(a.id, fds_item(writing), timeout=call.cookie))

    thread = threading.Thread(target=answer)
    thread.start()
    call = message(b.id, flags=c.EXPECT_REPLY, cookie=3, timeout=FOR_EVER)
    data = a.send(call, c.SEND_SYNC_REPLY)
    thread.join()
    offset, size = struct.unpack_from("<QQ", data, 32)
    (sent,) = numbers_in(Got(a.map[offset : offset + size]))
    assert sent != writing
    os.write(sent, b"back")
    assert os.read(reading, 9) == b"back"


def no_room_for_fds(root: Path) -> None:
    """What the process has no number for is -1, and it is told so."""
    import resource

    _, a, b = pair(root)
    a.send(message(b.id, fds_item(1, 1, 1, 1)))
    b.wait()
    highest = max(descriptors())
    fillers = []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
    try:
        while True:
            fillers.append(os.dup(1))
    except OSError:
        pass
    os.close(fillers.pop())
    os.close(fillers.pop())
    got = b.recv()
    numbers = numbers_in(got)
    assert [number < 0 for number in numbers] == [False, False, True, True], numbers
    assert numbers[2:] == [-1, -1]
    assert b.msg_flags == c.RECV_INCOMPLETE_FDS


def memfds(root: Path) -> None:
    _, a, b = pair(root)
    data = os.urandom(10_000)
    fd = sealed(data)
    a.send(message(b.id, item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 100, 9000, fd, 0))))
    got = b.recv()
    start, size, number, _ = struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"")
    assert number != fd
    with mmap.mmap(number, 10_000, mmap.MAP_PRIVATE, mmap.PROT_READ) as there:
        assert there[start : start + size] == data[100:9100]
    unsealed = unnamed()
    part = item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, 8, unsealed, 0))
    refused(errno.ETXTBSY, a.send, message(b.id, part))


# Poll


def poll(root: Path) -> None:
    """Readable while something is queued, by level and by edge, and hung up when it is over."""
    _, a, b = pair(root)
    level, edge = select.epoll(), select.epoll()
    level.register(b.fd, select.EPOLLIN)
    edge.register(b.fd, select.EPOLLIN | select.EPOLLET)
    assert not readable(b)
    a.say(b.id, b"1")
    a.say(b.id, b"2")
    assert readable(b, 30) == select.POLLIN
    assert level.poll(30)
    assert edge.poll(30)
    assert not edge.poll(0)
    for number in (b"1", b"2"):
        assert readable(b, 30)
        assert b.recv().payload == number
    assert not readable(b)
    assert not level.poll(0)
    edge.poll(0)
    a.say(b.id, b"3")
    assert edge.poll(30)
    b.do("RECV", c.RECV_DROP)
    refused(errno.EAGAIN, b.do, "RECV")
    assert not readable(b, 0.05)
    b.do("BYEBYE")
    assert readable(b, 30) & select.POLLHUP
    refused(errno.ECONNRESET, b.do, "RECV")
    refused(errno.ECONNRESET, b.do, "BYEBYE")


def closes(root: Path) -> None:
    """Who is told of a close, was told when it returns."""
    bus = Bus(root)
    watcher = Peer(bus.path)
    watcher.do("MATCH_ADD", 0, u64(1), item(c.ITEM_ID_REMOVE, u64(c.NONE64, 0)))
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            watcher.do("LIST", c.LIST_UNIQUE)

    # So that the bus has always something to do.
    busy = [threading.Thread(target=work) for _ in range(2)]
    try:
        for thread in busy:
            thread.start()
        for _ in range(100):
            Peer(bus.path).close()
            watcher.do("RECV")
    finally:
        over.set()
        for thread in busy:
            thread.join()


# Processes and threads


def forks(root: Path) -> None:
    """A connection is its descriptor's, in whatever process, as whatever user, at the same time."""
    _, a, b = pair(root)
    pid = os.fork()
    for _ in range(300):
        ioctl(a.fd, "CONN_INFO", command("CONN_INFO", 0, u64(a.id)))
        a.do("FREE", 0, ioctl(a.fd, "CONN_INFO", command("CONN_INFO", 0, u64(b.id)))[40:48])
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for raw in (False, True):
        a.say(b.id, b"to the child")
        pid = libc.syscall(CLONE, signal.SIGCHLD, 0, 0, 0, 0) if raw and CLONE else os.fork()
        if not pid:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(1000, 1000, 1000)
                    os.setresuid(1000, 1000, 1000)
                os.chdir("/")
                assert b.recv().payload == b"to the child"
                a.say(b.id, b"to the parent")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert b.recv().payload == b"to the parent"
        refused(errno.EAGAIN, b.do, "RECV")


def executes(root: Path) -> None:
    """Over execve() goes what is not close-on-exec, and is a connection there as well."""
    _, a, b = pair(root)
    assert fcntl.fcntl(b.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    code = "import os; print(*sorted(map(int, os.listdir('/proc/self/fd'))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False
    )
    assert set(map(int, done.stdout.split())) <= {0, 1, 2, 3}, done.stdout
    os.set_inheritable(b.fd, True)
    a.say(b.id, b"over")
    words = [sys.executable, __file__, "inherited", str(b.fd)]
    subprocess.run(words, check=True, close_fds=False)
    a.say(b.id, b"still here")
    assert b.recv().payload == b"still here"


def inherited(fd: str) -> None:
    peer = Peer.__new__(Peer)
    peer.fd = int(fd)
    peer.map = mmap.mmap(peer.fd, POOL, mmap.MAP_SHARED, mmap.PROT_READ)
    assert peer.recv().payload == b"over"


def threads(root: Path) -> None:
    """Many at once on one connection; one that waits is in nobody's way."""
    _, a, b = pair(root)
    results: list[object] = []

    def call() -> None:
        data = message(b.id, flags=c.EXPECT_REPLY, cookie=9, timeout=FOR_EVER)
        results.append(a.send(data, c.SEND_SYNC_REPLY))

    caller = threading.Thread(target=call)
    caller.start()
    assert b.recv().cookie == 9

    def work(number: int) -> None:
        for turn in range(50):
            a.say(a.id, b"%d %d" % (number, turn))
            offset = struct.unpack_from("<Q", a.do("RECV"), 40)[0]
            a.do("FREE", 0, u64(offset))
        results.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(results) == list(range(8))  # type: ignore[type-var]
    assert caller.is_alive()
    b.say(a.id, b"now", timeout=9)
    caller.join()
    assert len(results) == 9


def signals(root: Path) -> None:
    """A handler ends a synchronous call, unless it lets system calls go on."""
    _, a, b = pair(root)
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    for restarts in (False, True):
        signal.siginterrupt(signal.SIGUSR1, not restarts)
        pid = os.fork()
        if not pid:
            b.recv()
            os.kill(os.getppid(), signal.SIGUSR1)
            if restarts:
                # Whoever is interrupted is so at once; this is only to find who is not to be.
                time.sleep(0.1)
                b.say(a.id, b"after all", timeout=5)
            os._exit(0)
        data = message(b.id, flags=c.EXPECT_REPLY, cookie=5, timeout=FOR_EVER)
        if restarts:
            a.send(data, c.SEND_SYNC_REPLY)
        else:
            refused(errno.EINTR, a.send, data, c.SEND_SYNC_REPLY)
        assert os.waitpid(pid, 0)[1] == 0
    assert seen == [1, 1]


# Memory


def faults(root: Path) -> None:
    """Pointers that lead nowhere are EFAULT, wherever they are."""
    _, a, b = pair(root)
    number = {"SEND": 0x40389590, "RECV": 0x80409591, "FREE": 0x40209583}

    def give(name: str, address: int) -> None:
        if libc.ioctl(a.fd, ctypes.c_ulong(number[name]), ctypes.c_void_p(address)) < 0:
            raise Errno(ctypes.get_errno())

    for address in (0, 8, 1 << 46, (1 << 64) - 4096):
        for name in number:
            refused(errno.EFAULT, give, name, address)
        refused(errno.EFAULT, a.send_at, address)
        for size in (8, 100_000):
            vec = item(c.ITEM_PAYLOAD_VEC, u64(size, address or 16))
            refused(errno.EFAULT, a.send, message(b.id, vec))
    buffer = ctypes.create_string_buffer(command("FREE"), 64)
    refused(errno.EFAULT, give, "FREE", ctypes.addressof(buffer) + 1)
    page = libc.mmap(None, 8192, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    # A command at the end of memory; then one that says that it goes on there.
    libc.munmap(page + 4096, 4096)
    ctypes.memmove(page + 4096 - 64, command("RECV"), 64)
    refused(errno.EAGAIN, give, "RECV", page + 4096 - 64)
    ctypes.memmove(page + 4096 - 64, u64(72), 8)
    refused(errno.EFAULT, give, "RECV", page + 4096 - 64)
    ctypes.memmove(page + 4096 - 8, u64(1), 8)
    refused(errno.EINVAL, give, "RECV", page + 4096 - 8)
    # Memory that cannot be written to.
    ctypes.memmove(page, command("RECV"), 64)
    libc.mprotect(page, 4096, mmap.PROT_READ)
    refused(errno.EFAULT, give, "RECV", page)
    # Payload that ends too early, and is larger than a frame.
    area = libc.mmap(None, 1 << 20, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    libc.munmap(area + (1 << 19), 1 << 19)
    for size in (4096 + 8, (1 << 17) + 8):
        vec = item(c.ITEM_PAYLOAD_VEC, u64(size, area + (1 << 19) - size + 8))
        refused(errno.EFAULT, a.send, message(b.id, vec))
    a.say(b.id, b"and goes on")
    assert b.recv().payload == b"and goes on"


def maps(root: Path) -> None:
    """A pool is mapped for reading, as far as it goes, of a connection."""
    bus = Bus(root)
    peer = Peer(bus.path)

    def there(fd: int, length: int, protection: int, flags: int = mmap.MAP_SHARED) -> int:
        address = libc.mmap(None, length, protection, flags, fd, 0)
        if address == FAILED:
            raise Errno(ctypes.get_errno())
        return int(address)

    refused(errno.EPERM, there, peer.fd, POOL, mmap.PROT_READ | mmap.PROT_WRITE)
    refused(errno.EPERM, there, peer.fd, POOL, mmap.PROT_WRITE, mmap.MAP_PRIVATE)
    refused(errno.EFAULT, there, peer.fd, POOL + 1, mmap.PROT_READ)
    refused(errno.EBADFD, there, os.open(bus.path, os.O_RDWR), POOL, mmap.PROT_READ)
    refused(errno.EBADFD, there, bus.control, POOL, mmap.PROT_READ)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        address = there(peer.fd, POOL, mmap.PROT_READ, flags)
        assert libc.mprotect(address, POOL, mmap.PROT_READ | mmap.PROT_WRITE) < 0
        assert ctypes.get_errno() == errno.EACCES
        assert ctypes.string_at(address, 64) == peer.map[:64]
    before = descriptors()
    there(peer.fd, 4096, mmap.PROT_READ)
    assert descriptors() == before


# Being a good guest


def leaves_nothing(root: Path) -> None:
    """No descriptor is left of handles that were closed, nor of those whose numbers were taken."""
    bus = Bus(root)
    before = descriptors()
    for turn in range(20):
        a, b = Peer(bus.path), Peer(bus.path)
        a.say(b.id, bytes(100_000))
        assert len(b.recv().payload) == 100_000
        other = os.dup(a.fd)
        a.close()
        ioctl(other, "LIST", command("LIST", c.LIST_UNIQUE))
        os.close(other)
        b.close()
        assert descriptors() == before, turn
    null = os.open("/dev/null", os.O_RDWR)
    for _ in range(20):
        peer = Peer(bus.path)
        os.dup2(null, peer.fd)
        os.close(peer.fd)
        peer.map.close()
    os.close(null)
    refused(errno.ENOENT, os.open, bus.path.parent / "nothing", os.O_RDWR)
    Peer(bus.path).close()
    # One may be seen a little later.
    assert len(descriptors()) <= len(before) + 2, descriptors() - before


def survives(root: Path) -> None:
    """A program that closes all that it does not know loses nothing by it."""
    _, a, b = pair(root)
    ours = {a.fd, b.fd, 0, 1, 2}
    a.say(b.id, bytes(100_000))
    b.recv()
    for fd in descriptors() - ours:
        if fd > 100:
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, fd)
            os.close(null)
    mine = descriptors()
    a.say(b.id, bytes(90_000))
    assert b.recv().payload == bytes(90_000)
    for fd in mine - ours:
        if fd > 100:
            assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"


def modest(root: Path) -> None:
    """The lowest number is the program's, and errno stays as it was."""
    bus = Bus(root)
    lowest = os.dup(0)
    os.close(lowest)
    fd = os.open(bus.path, os.O_RDWR | os.O_NONBLOCK)
    assert fd == lowest
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    data = ctypes.create_string_buffer(
        command("HELLO", 0, u64(c.ATTACH_ALL, c.ATTACH_ALL, 0, 0, POOL)), 96
    )
    ctypes.set_errno(77)
    assert libc.ioctl(fd, ctypes.c_ulong(0xC0609580), data) == 0
    assert ctypes.get_errno() == 77
    lowest = os.dup(0)
    os.close(lowest)
    assert lowest == fd + 1


def mapped_path(root: Path) -> None:
    fd = os.open("/sys/fs/kdbus/control", os.O_RDWR)
    refused(errno.EINVAL, ioctl, fd, "BUS_MAKE", command("BUS_MAKE"))
    assert os.path.isdir(root)


def long_path(root: Path) -> None:
    """Longer than a socket's address can be, and from a directory's descriptor."""
    bus = Bus(root)
    Peer(bus.path)
    folder = os.open(bus.path.parent, os.O_RDONLY)
    fd = os.open("bus", os.O_RDWR, dir_fd=folder)
    ioctl(fd, "HELLO", command("HELLO", 0, u64(c.ATTACH_ALL, c.ATTACH_ALL, 0, 0, POOL)))


def bystander(root: Path) -> None:
    """What has nothing to do with kdbus is as it was."""
    import socket
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        os.mkfifo(f"{name}/fifo")
        refused(errno.ENXIO, os.open, f"{name}/fifo", os.O_WRONLY | os.O_NONBLOCK)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.bind(f"{name}/{int(kind)}")
                refused(errno.ENXIO, os.open, f"{name}/{int(kind)}", os.O_RDWR)
                refused(errno.ENODEV, mmap.mmap, sock.fileno(), 4096, mmap.MAP_SHARED)
                refused(errno.ENOTTY, ioctl, sock.fileno(), "FREE", command("FREE"))
        old = os.umask(0)
        os.close(os.open(f"{name}/file", os.O_CREAT | os.O_RDWR, 0o640))
        os.umask(old)
        assert os.stat(f"{name}/file").st_mode & 0o777 == 0o640
        fd = os.open(f"{name}/file", os.O_RDWR)
        refused(errno.ENOTTY, ioctl, fd, "FREE", command("FREE"))
        os.ftruncate(fd, 4096)
        with mmap.mmap(fd, 4096) as there:
            there[:5] = b"there"
        assert os.pread(fd, 5, 0) == b"there"
        refused(errno.EBADF, ioctl, 999, "FREE", command("FREE"))
        refused(errno.EBADF, os.close, 999)
        refused(errno.ENOENT, os.open, f"{name}/none", os.O_RDWR)
    for address in (0, 8, 1 << 60):
        assert libc.open(ctypes.c_void_p(address), os.O_RDWR) == -1
        assert ctypes.get_errno() == errno.EFAULT
    assert max(descriptors()) < 20
    assert root.exists()


def over(root: Path) -> None:
    """The bus goes, while somebody has it open, and while somebody waits for an answer."""
    _, a, b = pair(root)
    plain = os.open(a_path(root), os.O_RDWR)
    ioctl_list = command("LIST", c.LIST_UNIQUE)
    refused(errno.EBADFD, ioctl, plain, "LIST", ioctl_list)
    print("ready", flush=True)
    data = message(b.id, flags=c.EXPECT_REPLY, cookie=5, timeout=FOR_EVER)
    refused(errno.ECONNRESET, a.send, data, c.SEND_SYNC_REPLY)
    assert readable(a, 5) & select.POLLHUP
    refused(errno.ECONNRESET, b.do, "RECV")
    refused(errno.ESHUTDOWN, ioctl, plain, "LIST", ioctl_list)
    a.close()
    b.close()


def a_path(root: Path) -> Path:
    return next(root.glob("*/bus"))


if __name__ == "__main__":
    if sys.argv[1] == "inherited":
        inherited(sys.argv[2])
    else:
        globals()[sys.argv[1]](Path(sys.argv[2]))
