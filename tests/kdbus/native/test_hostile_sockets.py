"""Clients that do what no client should: the others never notice.

Each test has the `bus` fixture, which talks as two others on the same bus when it is over, and each
server fails its tests if it wrote anything to its standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as e
import fcntl
import mmap
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from kdbuskit import bloom, command, item, message, text, u64
from nativeclient import HEAD, OPS, OUTBOX, POOL, Bus, Errno, Peer, Socket, answered, request
from nativeserver import served
from unnamed import unnamed
from waiting import until

from jitney.broker.kdbus import constants as c

CALL = {"flags": c.EXPECT_REPLY, "timeout": 1 << 62}


def ended(peer: Socket) -> bool:
    """Whether the bus has ended this socket."""
    with contextlib.suppress(ConnectionResetError):
        while True:
            try:
                peer.get()
            except EOFError:
                return True
    return True


@pytest.mark.parametrize(
    "frame",
    [
        b"x",
        bytes(23),
        bytes(24),
        HEAD.pack(25, 0x86, 0, 1, 0, 0, 0),
        HEAD.pack(23, 0x86, 0, 1, 0, 0, 0),
        HEAD.pack(24, 0x86, 0, 1, 0, 0, 0) + b"more",
        HEAD.pack((1 << 16) + 8, 0x86, 0, 1, 0, 0, 0) + bytes((1 << 16) - 16),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(8),
)
def test_what_is_no_frame(bus: Bus, frame: bytes) -> None:
    peer = Peer(bus.path)
    peer.raw(frame)
    assert ended(peer)


def test_the_longest_frame(bus: Bus) -> None:
    peer = Peer(bus.path)
    body = command("LIST", 15)
    peer.raw(HEAD.pack(1 << 16, OPS["LIST"], 0, 1, 0, 0, 0) + body + bytes((1 << 16) - 24 - 40))
    assert peer.get().error == 0


def test_garbage(bus: Bus) -> None:
    chance = random.Random(7)
    ops = [*OPS.values(), 0x92, 0xFFFF]
    for _ in range(400):
        peer = Socket(bus.path)
        if chance.random() < 0.5:
            peer.do("HELLO", command("HELLO", 1, u64(0, 0, 0, 0, POOL)))
        for _ in range(chance.randrange(1, 5)):
            body = chance.randbytes(chance.randrange(0, 300))
            if chance.random() < 0.7:
                body = u64(len(body)) + body[8:]
            frees = tuple(chance.randrange(1 << 20) for _ in range(chance.randrange(3)))
            fds = (0,) * chance.randrange(3)
            serial = chance.randrange(1, 1 << 32)
            peer.raw(request(chance.choice(ops), body, serial, frees=frees), fds)
        peer.close()


def test_altered_commands(bus: Bus) -> None:
    """Frames that are right but for a few bytes."""
    chance = random.Random(11)
    peer = Peer(bus.path)
    vec = item(c.ITEM_PAYLOAD_VEC, u64(8, 80))
    good = [
        ("SEND", command("SEND", 0, u64(80)) + message(peer.id, vec)),
        ("LIST", command("LIST", 15)),
        ("NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b"))),
        ("MATCH_ADD", command("MATCH_ADD", 0, u64(1), item(c.ITEM_BLOOM_MASK, bytes(64)))),
        ("CONN_INFO", command("CONN_INFO", 0, u64(peer.id, c.ATTACH_ALL))),
        ("UPDATE", command("UPDATE", items=item(c.ITEM_ATTACH_FLAGS_SEND, u64(3)))),
        ("RECV", command("RECV")),
    ]
    for _ in range(2000):
        name, body = chance.choice(good)
        data = bytearray(body)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 8, 0x7F, 0xFF))
        frame = peer.ask(name, bytes(data))
        assert frame.op == OPS[name] | 0x8000
        assert frame.error not in (e.EIO, e.ENOTTY)
        if name in ("LIST", "CONN_INFO") and not frame.error:
            at = 24 if name == "LIST" else 40
            peer.do("FREE", command("FREE", 0, frame.body[at : at + 8]))


def test_too_many_descriptors(server: Any, bus: Bus) -> None:
    before = server.descriptors()
    peer = Peer(bus.path)
    fds = (0,) * 253
    assert peer.ask("LIST", command("LIST", 15), fds).error == 0
    with pytest.raises(OSError, match=r"Invalid argument|Too many references"):
        peer.raw(request(0x86, command("LIST", 15)), (0,) * 254)
    items = item(c.ITEM_FDS, struct.pack("<17i", *range(17)))
    assert peer.send(message(peer.id, items), fds=fds).error == e.EMFILE
    peer.close()
    bus.control.do("OPEN", struct.pack("<II", 1, 0))
    settle(server, before)


def settle(server: Any, before: int) -> None:
    """All descriptors that were taken are closed, a moment later where a thread does it."""
    until(lambda: server.descriptors() <= before, "they are closed")


def test_no_room_for_descriptors(tmp_path: Path) -> None:
    """The server has none left: requests with descriptors are refused, others are served."""
    with served(tmp_path / "kdbus") as running:
        bus = Bus(running.path)
        peer, other = Peer(bus.path), Peer(bus.path)
        hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (running.descriptors() + 2, hard))
        frame = peer.ask("LIST", command("LIST", 15), (0,) * 10)
        assert frame.error == e.EMFILE
        assert other.say(peer.id, b"x").error == 0
        # Nobody can come, until somebody goes.
        waiting = [Socket(bus.path, wait=30) for _ in range(4)]
        other.do("LIST", command("LIST", 15))
        assert peer.recv().payload == b"x"
        for one in waiting:
            one.close()
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert answered(bus.path)


def test_answers_that_are_not_read(bus: Bus) -> None:
    """Its own requests stay in its socket, and nothing grows."""
    peer = Peer(bus.path)
    peer.sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        for _ in range(100_000):
            peer.put("BUS_CREATOR_INFO", command("BUS_CREATOR_INFO", 0, u64(0, 0)))
            sent += 1
    assert sent < 100_000
    assert answered(bus.path)
    peer.sock.setblocking(True)
    # All that was sent is answered, in order, now that it reads.
    for serial in range(peer.serial - sent, peer.serial):
        assert peer.get().serial == serial + 0 or serial == peer.serial - sent


def test_messages_that_are_not_read(bus: Bus) -> None:
    """Who is fed and does not read keeps no more than its quota."""
    lazy, sender = Peer(bus.path, credit=1024), Peer(bus.path)
    for _ in range(20_000):
        number = sender.say(lazy.id, b"x", cookie=3).error
        if number:
            break
        lazy.put("GRANT", credit=1024) if _ % 100 == 0 else None
    assert number == e.ENOBUFS
    assert answered(bus.path)
    sender.close()
    lazy.close()


def test_floods(bus: Bus) -> None:
    """Who always has something to say does not keep others from being served."""
    flood = Peer(bus.path)
    over = threading.Event()

    def run() -> None:
        frame = request(OPS["FREE"], command("FREE", 0, u64(POOL)), 1, flags=1)
        while not over.is_set():
            flood.raw(frame)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert answered(bus.path)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_closed_half_way(bus: Bus) -> None:
    chance = random.Random(3)
    for _ in range(200):
        a, b = Peer(bus.path, credit=8), Peer(bus.path)
        for _ in range(chance.randrange(6)):
            body = command("SEND", c.SEND_SYNC_REPLY, u64(80)) + message(a.id, cookie=7, **CALL)
            b.put("SEND", body)
            b.say(a.id, b"x")
            a.put("LIST", command("LIST", 15))
        a.sock.shutdown(chance.choice((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))
        for one in chance.sample((a, b), 2):
            one.close()


def test_half_closed(bus: Bus) -> None:
    """Who says that nothing more will come, is gone."""
    peer, watcher = Peer(bus.path), Peer(bus.path)
    watcher.do(
        "MATCH_ADD", command("MATCH_ADD", 0, u64(1), item(c.ITEM_ID_REMOVE, u64(peer.id, 0)))
    )
    peer.sock.shutdown(socket.SHUT_WR)
    watcher.wait()
    assert watcher.recv().items[0].kind == c.ITEM_ID_REMOVE


def test_killed_clients(bus: Bus) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]; from nativeclient import *;"
        "peer = Peer(Path(sys.argv[1]), credit=100); print(peer.id, flush=True);"
        "exec('while True: peer.say(int(sys.argv[2]), bytes(100))')"
    )
    target = Peer(bus.path)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(bus.path), str(target.id), *sys.path],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        target.wait()
        child.kill()
        child.wait()
        child.stdout.close()
        while target.try_recv()[1] is not None:
            target.free(target.offset)
        target.pushed.clear()
        target.put("WOKEN")


# Outboxes and memfds that change


def test_outbox_cut_off(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    box = unnamed()
    os.ftruncate(box, 1 << 20)
    sender.do("OUTBOX", fds=(box,))
    over = threading.Event()

    def cut() -> None:
        while not over.is_set():
            os.ftruncate(box, 0)
            os.ftruncate(box, 1 << 20)
            os.pwrite(box, b"x" * 4096, 65536)

    worker = threading.Thread(target=cut)
    worker.start()
    seen = set()
    try:
        for _ in range(300):
            vec = item(c.ITEM_PAYLOAD_VEC, u64(100_000, OUTBOX))
            number = sender.send(message(receiver.id, vec)).error
            seen.add(number)
            if not number:
                assert len(receiver.recv().payload) == 100_000
    finally:
        over.set()
        worker.join()
    assert seen <= {0, e.EFAULT}


def test_what_was_cut_off_is_zeros(bus: Bus) -> None:
    """Not what was in the receiver's pool before."""
    sender, receiver = Peer(bus.path), Peer(bus.path)
    sender.say(receiver.id, b"secret" * 100)
    receiver.recv()
    box = unnamed()
    os.ftruncate(box, 600)
    sender.do("OUTBOX", fds=(box,))
    vec = item(c.ITEM_PAYLOAD_VEC, u64(600, OUTBOX))
    assert sender.send(message(receiver.id, vec)).error == 0
    assert receiver.recv().payload == bytes(600)


def test_memfd_that_could_change(bus: Bus) -> None:
    """Mapped for writing, it cannot be sealed; unsealed, it is not taken."""
    sender, receiver = Peer(bus.path), Peer(bus.path)
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    area = mmap.mmap(fd, 4096)
    with pytest.raises(OSError, match="busy"):
        fcntl.fcntl(fd, 1033, 15)
    fcntl.fcntl(fd, 1033, 6)
    items = item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, 4096, 0, 0))
    assert sender.send(message(receiver.id, items), fds=(fd,)).error == e.ETXTBSY
    area.close()
    fcntl.fcntl(fd, 1033, 15)
    assert sender.send(message(receiver.id, items), fds=(fd,)).error == 0


def test_files_that_ask_their_client(bus: Bus) -> None:
    """A FUSE file whose server hangs: nothing that we do with it may wait."""
    if not os.path.exists("/dev/fuse") or os.geteuid() != 0:
        pytest.skip("nothing can be mounted here")
    libc = ctypes.CDLL(None, use_errno=True)
    import tempfile

    folder = tempfile.mkdtemp(prefix="jitney-hang-")
    dev = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={dev},rootmode=100000,user_id=0,group_id=0".encode()
    place = os.path.join(folder, "file")
    Path(place).touch()
    assert libc.mount(b"hang", place.encode(), b"fuse.hang", ctypes.c_ulong(6), options) == 0
    over = threading.Event()

    def answer() -> None:
        """INIT and OPEN are answered, and nothing after them."""
        while not over.is_set():
            try:
                data = os.read(dev, 1 << 20)
            except OSError:
                return
            op, unique = struct.unpack_from("<IQ", data, 4)
            out = b""
            if op == 26:
                out = struct.pack("<IIIIHHII", 7, 31, 65536, 0, 12, 9, 4096, 1) + bytes(32)
            elif op == 14:
                out = struct.pack("<QII", 1, 0, 0)
            elif op == 3:
                attr = struct.pack(
                    "<6Q10I", 1, 9, 0, 0, 0, 0, 0, 0, 0, 0o100666, 1, 0, 0, 0, 4096, 0
                )
                out = struct.pack("<QII", 0, 0, 0) + attr
            else:
                continue
            os.write(dev, struct.pack("<IiQ", 16 + len(out), 0, unique) + out)

    worker = threading.Thread(target=answer, daemon=True)
    worker.start()
    try:
        file = os.open(place, os.O_RDONLY)
        sender, receiver = Peer(bus.path), Peer(bus.path)
        items = item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, 9, 0, 0))
        assert sender.send(message(receiver.id, items), fds=(file,)).error == e.EMEDIUMTYPE
        with pytest.raises(Errno, match="EMEDIUMTYPE"):
            sender.do("OUTBOX", fds=(file,))
        fds = item(c.ITEM_FDS, struct.pack("<i", 0))
        assert sender.send(message(receiver.id, fds), fds=(file,)).error == 0
        assert receiver.ask("RECV", command("RECV", c.RECV_DROP)).error == 0
        # The server closes it by now, and that lasts.
        assert answered(bus.path)
    finally:
        over.set()
        # FORCE: whoever waits there is let go, we when we close it as well.
        libc.umount2(place.encode(), 1)
        libc.umount2(place.encode(), 3)
        os.close(dev)
        worker.join(20)
        os.unlink(place)
        os.rmdir(folder)


def test_command_line_that_asks_its_client(bus: Bus) -> None:
    """The page with a sender's command line is one for which it answers itself, and never does."""
    receiver = Peer(bus.path, attach=c.ATTACH_ALL)
    code = r"""
import ctypes, sys, os, struct, mmap
sys.path[:0] = sys.argv[3:]
from nativeclient import *
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(323, os.O_CLOEXEC)
if fd < 0:
    print("no userfaultfd", flush=True); sys.exit()
api = ctypes.create_string_buffer(struct.pack("=QQQ", 0xAA, 0, 0))
assert libc.ioctl(fd, ctypes.c_ulong(0xC018AA3F), api) == 0
# The page of the stack on which the command line begins, which Python has read long ago.
at = int(open("/proc/self/stat").read().rpartition(")")[2].split()[45]) & ~4095
registered = ctypes.create_string_buffer(struct.pack("=QQQQ", at, 4096, 1, 0))
if libc.ioctl(fd, ctypes.c_ulong(0xC020AA00), registered) < 0:
    print("not allowed", flush=True); sys.exit()
where, to = Path(sys.argv[1]), int(sys.argv[2])
assert libc.madvise(ctypes.c_void_p(at), 4096, 4) == 0
peer = Peer(where)
print("here", flush=True)
frame = peer.say(to, b"from the dark")
print(frame.error, flush=True)
os._exit(0)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(bus.path), str(receiver.id), *sys.path],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    if first == b"here\n":
        assert child.stdout.readline() == b"0\n"
        receiver.wait()
        got = receiver.recv()
        assert got.payload == b"from the dark"
        assert got.get(c.ITEM_CMDLINE) is None
        assert got.get(c.ITEM_EXE) is not None
    child.stdout.close()
    child.wait(20)
    if first != b"here\n":
        pytest.skip(first.decode().strip() or "the client did not start")


def test_its_own_socket_in_its_own_pool(bus: Bus, server: Any) -> None:
    """It would never end if it could be its own keeper."""
    peer = Peer(bus.path)
    fds = item(c.ITEM_FDS, struct.pack("<i", 0))
    assert peer.send(message(peer.id, fds), fds=(peer.sock.fileno(),)).error == e.EOPNOTSUPP
    watcher = Peer(bus.path)
    watcher.do(
        "MATCH_ADD", command("MATCH_ADD", 0, u64(1), item(c.ITEM_ID_REMOVE, u64(peer.id, 0)))
    )
    peer.close()
    watcher.wait()
    assert watcher.recv().items[0].kind == c.ITEM_ID_REMOVE


def test_nothing_is_left_of_clients(bus: Bus, server: Any) -> None:
    before = server.descriptors()
    for turn in range(20):
        peers = [Peer(bus.path, credit=turn % 3) for _ in range(5)]
        for peer in peers:
            peer.do("OUTBOX", fds=(unnamed(),))
            fds = item(c.ITEM_FDS, struct.pack("<2i", 0, 1))
            peer.send(message(peers[0].id, fds), fds=os.pipe())
            peer.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
        for peer in peers:
            peer.close()
    settle(server, before)
