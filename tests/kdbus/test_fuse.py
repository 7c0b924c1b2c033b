"""kdbusfs over FUSE, as a program sees it: the tree, pools, poll, descriptors, signals."""

from __future__ import annotations

import errno as e
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kernel
import pytest
from foreground import RUN
from kdbuskit import bloom, command, item, message, text, u64
from kdbusmount import (
    ASK_NOTHING,
    POOL,
    Bus,
    Errno,
    Mounted,
    Peer,
    client,
    ioctl,
    is_mounted,
    mounted,
    why_not,
)

from jitney.broker.kdbus import constants as c

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"kdbusfs: {why_not()}")


def passthrough() -> bool:
    if not kernel.MEMFD:
        return False
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor.split("-")[0])) >= (6, 9)


@pytest.fixture(params=["store", "passthrough"])
def tree(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mounted]:
    """With the one kind of pools messages go the short way, with the other the long one."""
    if request.param == "passthrough" and not passthrough():
        pytest.skip("this kernel has no FUSE passthrough")
    if request.param == "store":
        monkeypatch.setenv(ASK_NOTHING, "1")
    with mounted(tmp_path / "kdbus", request.param) as mount:
        yield mount


def code(number: int) -> str:
    return e.errorcode.get(number, str(number))


def fails(number: int, what: object, *arguments: object) -> None:
    with pytest.raises(Errno) as caught:
        what(*arguments)  # type: ignore[operator]
    assert code(caught.value.errno) == code(number)


def test_tree(tree: Mounted) -> None:
    root = tree.path
    assert os.listdir(root) == ["control"]
    assert stat.S_IMODE((root / "control").stat().st_mode) == 0o666
    bus = Bus(root)
    assert sorted(os.listdir(root)) == ["0-test", "control"]
    assert os.listdir(root / "0-test") == ["bus"]
    assert stat.S_IMODE((root / "0-test").stat().st_mode) == 0o555
    assert stat.S_IMODE(bus.path.stat().st_mode) == 0o666
    door = os.open(bus.path, os.O_RDWR)
    ioctl(door, "ENDPOINT_MAKE", command("ENDPOINT_MAKE", 0, items=text(c.ITEM_MAKE_NAME, b"0-d")))
    assert stat.S_IMODE((root / "0-test" / "0-d").stat().st_mode) == 0o600
    os.close(door)
    assert os.listdir(root / "0-test") == ["bus"]
    bus.close()
    assert os.listdir(root) == ["control"]
    for change in (
        lambda: os.mkdir(root / "x"),
        lambda: os.unlink(root / "control"),
        lambda: os.truncate(root / "control", 5),
        (root / "x").touch,
    ):
        with pytest.raises(OSError, match=r"Errno"):
            change()


def test_unknown_ioctls(tree: Mounted) -> None:
    fd = os.open(tree.path / "control", os.O_RDWR)
    import fcntl

    with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        fcntl.ioctl(fd, 0x40187777, bytes(24))
    assert caught.value.errno == e.ENOTTY
    fails(e.EBADFD, ioctl, fd, "HELLO", command("HELLO"))
    os.close(fd)


def test_talking(tree: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASK_NOTHING, raising=False)
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    assert struct.unpack_from("<4Q", a.greeting) == (32, c.ITEM_BLOOM_PARAMETER, 64, 1)
    for size in (1, 7, 4096, 100_000):
        payload = os.urandom(size)
        a.say(b.id, payload, cookie=size)
        got = b.recv()
        assert (got.src, got.cookie, got.payload) == (a.id, size, payload)
        assert struct.unpack("<3Q", got.get(c.ITEM_PIDS) or b"")[0] == os.getpid()
        assert got.get(c.ITEM_CREDS) == u64(*[0] * 8)
        assert (got.get(c.ITEM_EXE) or b"").rstrip(b"\0") == os.readlink("/proc/self/exe").encode()
    fails(e.EAGAIN, b.do, "RECV")
    fails(e.EFAULT, a.send, message(b.id, item(c.ITEM_PAYLOAD_VEC, u64(8, 8))))


def test_large_commands(tree: Mounted) -> None:
    """Larger than what the kernel copies for us."""
    bus = Bus(tree.path)
    peer = Peer(bus.path)
    masks = item(c.ITEM_BLOOM_MASK, bytes(64 * 100))
    peer.do("MATCH_ADD", 0, u64(1), masks)
    peer.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
    assert peer.recv().src == peer.id
    data = peer.do("LIST", c.NEGOTIATE, items=item(c.ITEM_NEGOTIATE, u64(1, 0x7777)))
    assert struct.unpack_from("<2Q", data, 40 + 16) == (1, 0)


def test_bytes_are_never_stale(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    bytes(b.map)  # all pages are in its page cache now
    for turn in range(200):
        payload = struct.pack("<Q", turn) * 600
        a.say(b.id, payload)
        assert b.recv().payload == payload


def test_pool_is_as_long_as_asked(tree: Mounted) -> None:
    bus = Bus(tree.path)
    peer = Peer(bus.path)
    assert peer.map[POOL - 4096 : POOL] == bytes(4096)


def test_poll(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    poll = select.poll()
    poll.register(b.fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(b.fd, select.POLLOUT)]
    epoll = select.epoll()
    epoll.register(b.fd, select.EPOLLIN)
    assert epoll.poll(0) == []
    woken: list[object] = []
    thread = threading.Thread(target=lambda: woken.extend(epoll.poll(30)))
    thread.start()
    a.say(b.id, b"wake up")
    thread.join()
    assert woken == [(b.fd, select.EPOLLIN)]
    b.recv()
    assert epoll.poll(0) == []
    b.do("BYEBYE")
    assert poll.poll(0)[0][1] & select.POLLHUP
    fresh = os.open(bus.path, os.O_RDWR)
    poll.register(fresh, select.POLLIN)
    assert dict(poll.poll(0))[fresh] & select.POLLERR
    os.close(fresh)
    epoll.close()


def test_end_of_a_bus_wakes(tree: Mounted) -> None:
    bus = Bus(tree.path)
    peer = Peer(bus.path)
    poll = select.poll()
    poll.register(peer.fd, select.POLLIN)
    closing = threading.Timer(0.1, bus.close)
    closing.start()
    assert poll.poll(30000)[0][1] & select.POLLHUP
    closing.join()
    fails(e.ECONNRESET, peer.do, "LIST", 15)


def test_waiting_call(tree: Mounted) -> None:
    bus = Bus(tree.path)
    service = Peer(bus.path)
    process = client("sync_call", str(bus.path), str(service.id))
    got = service.recv()
    service.say(got.src, b"yes", timeout=3)
    out, _ = process.communicate(timeout=20)
    assert out == b"answered\n"


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_signal_for_a_waiting_call(tree: Mounted, how: str) -> None:
    bus = Bus(tree.path)
    service = Peer(bus.path)
    process = client("sync_call", str(bus.path), str(service.id))
    got = service.recv()
    # Python catches SIGINT and would go on; SIGTERM it does not, and so must not wait.
    if how == "interrupted":
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()
    fails(e.ENXIO, service.say, got.src, b"too late")


@kernel.needs_getfd
def test_cancel_descriptor(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    event = os.eventfd(0)
    cancel = item(c.ITEM_CANCEL_FD, struct.pack("<i", event))
    data = message(b.id, flags=c.EXPECT_REPLY, timeout=1 << 62)
    timer = threading.Timer(0.1, os.eventfd_write, (event, 1))
    timer.start()
    fails(e.ECANCELED, a.send, data, c.SEND_SYNC_REPLY, cancel)
    timer.join()
    with open("/etc/passwd", "rb") as file:
        plain = item(c.ITEM_CANCEL_FD, struct.pack("<i", file.fileno()))
        fails(e.EINVAL, a.send, data, c.SEND_SYNC_REPLY, plain)
    fails(e.EBADF, a.send, data, c.SEND_SYNC_REPLY, item(c.ITEM_CANCEL_FD, struct.pack("<i", 999)))


def test_deadline(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    soon = time.monotonic_ns() + 50_000_000
    a.send(message(b.id, flags=c.EXPECT_REPLY, cookie=4, timeout=soon))
    got = a.recv()
    assert (got.timeout, got.items[0].kind) == (4, c.ITEM_REPLY_TIMEOUT)
    soon = time.monotonic_ns() + 50_000_000
    fails(e.ETIMEDOUT, a.send, message(b.id, flags=c.EXPECT_REPLY, timeout=soon), c.SEND_SYNC_REPLY)


@kernel.needs_getfd
def test_descriptors(tree: Mounted) -> None:
    """FUSE can take them, and cannot give them: the receiver is told, and gets what memfds hold."""
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    reading, writing = os.pipe()
    fds = item(c.ITEM_FDS, struct.pack("<2i", reading, writing))
    memfd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(memfd, b"sealed bytes")
    payload = item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 7, 5, memfd, 0))
    fails(e.ETXTBSY, a.send, message(b.id, payload))
    import fcntl

    fcntl.fcntl(memfd, 1033, 15)
    fails(e.EMEDIUMTYPE, a.send, message(b.id, payload.replace(
        struct.pack("<i", memfd) + bytes(4), struct.pack("<i", reading) + bytes(4))))  # fmt: skip
    a.send(message(b.id, fds + payload))
    got = b.recv()
    assert b.msg_flags == c.RECV_INCOMPLETE_FDS
    assert got.get(c.ITEM_FDS) == b"\xff" * 8
    assert got.payload == b"bytes"
    # Nobody holds them any more.
    os.close(writing)
    assert select.select([reading], [], [], 30)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_what_is_no_memfd(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    ends = os.pipe()
    payload = item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, 1, ends[0], 0))
    fails(e.EMEDIUMTYPE, a.send, message(b.id, payload))
    for fd in ends:
        os.close(fd)
    a.say(b.id, b"and goes on")
    assert b.recv().payload == b"and goes on"


@pytest.mark.skipif(kernel.GETFD, reason="here they are taken (Linux 5.6)")
def test_descriptors_that_cannot_be_taken(tree: Mounted) -> None:
    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    event = os.eventfd(0)
    fails(e.EOPNOTSUPP, a.send, message(b.id, item(c.ITEM_FDS, struct.pack("<i", event))))
    cancel = item(c.ITEM_CANCEL_FD, struct.pack("<i", event))
    data = message(b.id, flags=c.EXPECT_REPLY, timeout=1 << 62)
    fails(e.EOPNOTSUPP, a.send, data, c.SEND_SYNC_REPLY, cancel)
    fails(e.EBADF, a.send, message(b.id, item(c.ITEM_FDS, struct.pack("<i", 999))))
    os.close(event)


@kernel.needs_getfd
def test_descriptors_that_are_not_passed(tree: Mounted) -> None:
    import socket

    bus = Bus(tree.path)
    a, b = Peer(bus.path), Peer(bus.path)
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as inet:
        for fd, wrong in (
            (unix.fileno(), True),
            (a.fd, True),
            (b.fd, True),
            (inet.fileno(), False),
        ):
            data = message(b.id, item(c.ITEM_FDS, struct.pack("<i", fd)))
            if wrong:
                fails(e.EOPNOTSUPP, a.send, data)
            else:
                a.send(data)
    fails(e.EBADF, a.send, message(b.id, item(c.ITEM_FDS, struct.pack("<i", 999))))


def test_unmounted_at_the_end(tmp_path: Path) -> None:
    with mounted(tmp_path / "kdbus") as mount:
        Bus(mount.path)
        mount.process.terminate()
        assert mount.process.wait(30) == 0
        assert not is_mounted(mount.path)


def test_what_cannot_be_mounted(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RUN, "mount", str(tmp_path / "nowhere"), "--foreground"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("jitney mount: ")
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_background(tmp_path: Path) -> None:
    """Without --foreground the command returns when the tree is there."""
    path = tmp_path / "kdbus"
    path.mkdir()
    words = [sys.executable, "-c", RUN, "mount", str(path), "--pool", "store"]
    subprocess.run(words, check=True, timeout=30)
    try:
        assert os.listdir(path) == ["control"]
    finally:
        subprocess.run(["umount", str(path)], check=True)
