"""Where there is no SOCK_SEQPACKET, and where there is no memfd: the same, by other means."""

from __future__ import annotations

import asyncio
import errno as e
import mmap
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel
import pytest
from kdbuskit import command, item, message, text, u64
from nativeclient import HEAD, OPS, POOL, Bus, Peer, Socket, answered, request
from nativeserver import Server, served
from waiting import stop

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.kdbus.native import memory, pool
from jitney.kdbus.native.front import Front

STREAM = socket.SOCK_STREAM


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path / "kdbus", "--stream") as running:
        yield running


@pytest.fixture
def stream(server: Server) -> Iterator[Path]:
    """A bus on streams; when the test is done, it must still serve others."""
    control = Socket(server.path / "control", STREAM)
    name = b"%d-test" % os.geteuid()
    items = text(c.ITEM_MAKE_NAME, name) + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1))
    control.do("BUS_MAKE", command("BUS_MAKE", c.ACCESS_WORLD, items=items))
    path = server.path / name.decode() / "bus"
    yield path
    a, b = peer(path), peer(path)
    assert a.say(b.id, b"are you there").error == 0
    b.wait()
    assert b.recv().payload == b"are you there"
    control.close()


def peer(path: Path, **more: Any) -> Peer:
    return Peer(path, kind=STREAM, **more)


def test_frames_back_to_back(stream: Path) -> None:
    one = peer(stream)
    frames = [request(OPS["LIST"], command("LIST", 15), serial) for serial in range(1, 301)]
    one.raw(b"".join(frames))
    assert [one.get().serial for _ in frames] == list(range(1, 301))


def test_frames_in_pieces(stream: Path) -> None:
    one = peer(stream)
    data = request(OPS["LIST"], command("LIST", 15), 9) * 3
    for at in range(0, len(data), 5):
        one.raw(data[at : at + 5])
    assert [one.get().serial for _ in range(3)] == [9, 9, 9]


def test_half_a_frame(stream: Path) -> None:
    """Nobody waits for the rest, nor does it matter if it never comes."""
    one = peer(stream)
    (a, b) = os.pipe()
    one.raw(request(OPS["LIST"], command("LIST", 15), 9)[:30], (b,))
    other = peer(stream)
    assert other.say(one.id, b"x").error == 0
    one.close()
    os.close(b)
    # What came with the half was closed as well.
    assert os.read(a, 1) == b""


@pytest.mark.parametrize(
    "frame",
    [HEAD.pack(23, 0, 0, 1, 0, 0, 0), HEAD.pack(65537, 0, 0, 1, 0, 0, 0), b"GET / HTTP/1.1" * 9],
)
def test_what_is_no_frame(stream: Path, frame: bytes) -> None:
    one = peer(stream)
    one.raw(frame)
    with pytest.raises((EOFError, ConnectionResetError)):
        one.get()


def test_descriptors(stream: Path) -> None:
    one, two = peer(stream), peer(stream, credit=5)
    fds = item(c.ITEM_FDS, struct.pack("<i", 0))
    ends = os.pipe()
    for end in ends:
        assert one.send(message(two.id, fds), fds=(end,)).error == 0
    for end in ends:
        (fd,) = two.push().fds
        assert os.fstat(fd).st_ino == os.fstat(end).st_ino


def test_descriptors_of_frames_that_are_read_at_once(stream: Path, server: Server) -> None:
    """Each comes with its own frame, whatever the kernel has in one piece."""
    one, two = peer(stream), peer(stream, credit=50)
    fds = item(c.ITEM_FDS, struct.pack("<i", 0))
    plain = request(OPS["LIST"], command("LIST", 15), 9)
    with_fd = request(OPS["SEND"], command("SEND", 0, u64(80)) + message(two.id, fds, cookie=1), 10)
    ends = [os.pipe() for _ in range(5)]
    stop(server.pid)
    for near, far in ends:
        one.raw(plain)
        one.raw(with_fd, (near,))
        one.raw(with_fd[:50], (far,))
        one.raw(with_fd[50:] + plain)
    os.kill(server.pid, signal.SIGCONT)
    answers = [one.get() for _ in range(4 * len(ends))]
    assert [(frame.serial, frame.error) for frame in answers] == [
        (9, 0),
        (10, 0),
        (10, 0),
        (9, 0),
    ] * 5
    for pair in ends:
        for end in pair:
            (fd,) = two.push().fds
            assert os.fstat(fd).st_ino == os.fstat(end).st_ino
            assert os.get_blocking(fd) == os.get_blocking(end)
            os.close(fd)
            os.close(end)


@pytest.mark.skipif(os.geteuid() != 0, reason="is another user only as root")
def test_a_frame_of_two_senders_is_none(stream: Path) -> None:
    """Who has somebody else's socket cannot have them send what he began."""
    one = peer(stream)
    frame = request(OPS["LIST"], command("LIST", 15), 9)
    other = struct.pack("=iII", os.getpid(), 1000, 1000)
    one.sock.sendmsg([frame[:30]], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, other)])
    one.raw(frame[30:])
    with pytest.raises((EOFError, ConnectionResetError)):
        one.get()


def test_answers_that_are_not_read(stream: Path) -> None:
    lazy = peer(stream)
    lazy.sock.setblocking(False)
    frames = request(OPS["LIST"], command("LIST", 0), 5) * 500
    sent = 0
    try:
        while sent < 1 << 26:
            sent += lazy.sock.send(frames[sent % 64 :])
    except BlockingIOError:
        pass
    assert sent < 1 << 26
    assert answered_on(stream)
    lazy.sock.setblocking(True)
    lazy.close()


def answered_on(path: Path) -> bool:
    a, b = peer(path), peer(path)
    assert a.say(b.id, b"there").error == 0
    b.wait()
    return b.recv().payload == b"there"


# Without memfd


@pytest.fixture
def without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> int:
        raise OSError(e.ENOSYS, "there is no such system call")

    monkeypatch.setattr(pool.os, "memfd_create", missing)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Path]:
    """A front in a thread of this process, which shares what a test has taken away."""
    made = Front(Domain(), str(tmp_path / "kdbus"))
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    def run() -> None:
        made.start(loop)
        loop.call_soon(ready.set)
        loop.run_forever()
        made.close()
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield tmp_path / "kdbus"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_a_file_in_place_of_a_memfd(without_memfd: None, front: Path) -> None:
    bus = Bus(front)
    assert answered(bus.path)
    one = Socket(bus.path)
    (fd,) = one.do("HELLO", command("HELLO", 1, u64(0, 0, 0, 0, POOL))).fds
    assert os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)")
    assert os.fstat(fd).st_nlink == 0
    assert memory.is_tmpfs(fd)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, POOL, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        os.ftruncate(fd, 0)


def test_pools_that_somebody_could_write_to_are_not_trusted(without_memfd: None) -> None:
    made = pool.MappedPool(4096)
    made.write(8, [b"ab", b"cd"])
    assert made.read(8, 4) == b"abcd"
    assert os.pread(made.fd, 4, 8) == b"abcd"
    assert not made.trusted
    made.close()
    made.close()


@kernel.needs_memfd
def test_pools_that_nobody_can_write_to_are() -> None:
    made = pool.MappedPool(4096)
    assert made.trusted
    made.close()


def test_an_outbox_is_memory_or_a_file_of_a_tmpfs(tmp_path: Path) -> None:
    with open("/dev/shm/jitney-test-box", "w+b") as file:
        os.unlink("/dev/shm/jitney-test-box")
        assert memory.is_tmpfs(file.fileno())
        assert memory.is_memory(file.fileno())
    with open("/proc/self/status", "rb") as file:
        assert not memory.is_tmpfs(file.fileno())
        assert not memory.is_memory(file.fileno())


@pytest.mark.skipif(os.geteuid() != 0, reason="its buses are root's")
def test_a_front_takes_up_what_there_is(tmp_path: Path) -> None:
    """A domain that has buses already, as when a bus is served by two fronts."""
    from kdbuskit import World

    world = World()
    world.endpoint()
    made = Front(world.domain, str(tmp_path / "kdbus"))
    loop = asyncio.new_event_loop()
    made.start(loop)
    assert (tmp_path / "kdbus" / "0-test" / "0-door").is_socket()
    world.endpoint(b"0-other")
    assert (tmp_path / "kdbus" / "0-test" / "0-other").is_socket()
    world.control.close()
    assert [path.name for path in (tmp_path / "kdbus").iterdir()] == ["control"]
    made.close()
    loop.close()
    assert world.domain.made is None
    assert not (tmp_path / "kdbus").exists()


# Descriptors of ours that a user may have


@pytest.fixture
def world() -> Iterator[Any]:
    import kdbusnative

    if kdbusnative.why_not():
        pytest.skip(kdbusnative.why_not())
    made = kdbusnative.NativeWorld()
    yield made
    made.close()


def test_descriptors_in_queues_have_a_limit(world: Any) -> None:
    """Also those that kdbus does not count, for they cost it none: memfds."""
    from kdbuskit import FakeFd

    sender, receiver, other = world.conn(), world.conn(), world.conn()
    sender.memory.fds[5] = FakeFd(b"12345678")
    purse = world.front.purses[0]
    purse.most = purse.held + 20
    data = message(receiver.id, item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, 8, 5, 0)) * 8)
    assert [sender.send(data) for _ in range(3)] == [0, 0, e.EMFILE]
    assert other.send(message(receiver.id)) == 0
    receiver.recv()
    assert sender.send(data) == 0


def test_descriptors_are_not_for_programs_that_the_server_starts(world: Any) -> None:
    import fcntl

    from kdbuskit import FakeFd

    sender, receiver = world.conn(), world.conn()
    handle = sender.memory.fds[5] = FakeFd()
    assert sender.send(message(receiver.id, item(c.ITEM_FDS, struct.pack("<i", 5)))) == 0
    (entry,) = receiver.handle.conn.queue.entries.values()
    (held,) = entry.fds
    assert os.fstat(held.fd).st_ino == os.fstat(handle.real).st_ino
    assert fcntl.fcntl(held.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_who_keeps_the_server_closing_is_not_read_from(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jitney.kdbus.native import purse as module

    slow, other = world.conn(), world.conn(uid=1000)
    stay = threading.Event()

    def close(fd: int) -> None:
        stay.wait(20)
        os.close(fd)

    monkeypatch.setattr(module, "close", close)
    monkeypatch.setattr(module, "CLOSING_MAX", 10)
    fd = os.open("/proc/self/status", os.O_RDONLY)
    slow.socket.ask("LIST", command("LIST", 15), (fd,) * 12)
    serial = slow.socket.put("LIST", command("LIST", 15))
    assert other.error("LIST", 15) == 0
    assert slow.socket.quiet()
    late = Socket(world.root / "control")
    late.put("OPEN", struct.pack("<II", 1, 0))
    assert late.quiet()
    stay.set()
    assert slow.socket.get().serial == serial
    assert late.get().error == 0
    os.close(fd)


def test_no_thread_is_left(world: Any) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "job"}
    client = world.conn()
    fd = os.open("/proc/self/status", os.O_RDONLY)
    client.socket.ask("LIST", command("LIST", 15), (fd,))
    os.close(fd)
    started = [t for t in threading.enumerate() if t.name == "job" and t not in before]
    world.close()
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()
    world.close = lambda: None
