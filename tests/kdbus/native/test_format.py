"""docs/native.md, statement by statement: frames, answers, pools, and being told."""

from __future__ import annotations

import errno as e
import fcntl
import mmap
import os
import select
import socket
import struct
from typing import Any

import kernel
import pytest
from kdbuskit import Got, bloom, command, item, message, text, u64
from nativeclient import (
    HEAD,
    MESSAGE,
    OUTBOX,
    POOL,
    QUIET,
    WAKE,
    Bus,
    Errno,
    Peer,
    Socket,
    request,
)
from unnamed import sealed, unnamed

from jitney.broker.kdbus import constants as c

LATER = 1 << 62
CALL = {"flags": c.EXPECT_REPLY, "timeout": LATER}


def refused(function: Any, *words: Any, **more: Any) -> str:
    with pytest.raises(Errno) as caught:
        function(*words, **more)
    return e.errorcode[caught.value.errno]


def memfd_item(size: int, start: int = 0, place: int = 0) -> bytes:
    return item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", start, size, place, 0))


def fds_item(*places: int) -> bytes:
    return item(c.ITEM_FDS, struct.pack(f"<{len(places)}i", *places))


# Requests


def test_head_of_an_answer(bus: Bus) -> None:
    peer = Peer(bus.path)
    serial = peer.put("LIST", command("LIST", 15))
    frame = peer.get()
    assert (frame.op, frame.serial, frame.error, frame.n_fds) == (0x8086, serial, 0, 0)
    assert len(frame.body) == 40
    frame = peer.ask("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.b")))
    assert (frame.op, frame.error, len(frame.body)) == (0x80A1, e.ESRCH, 24)


@pytest.mark.parametrize(
    ("frame", "number"),
    [
        (request(0x86, command("LIST"), serial=0), e.EINVAL),
        (request(0x86, command("LIST"), flags=2), e.EINVAL),
        (request(0x86, b"", frees=(0,) * 1025), e.EINVAL),
        (HEAD.pack(24, 0x86, 0, 1, 1, 0, 0), e.EINVAL),
        (HEAD.pack(24, 0x86, 0, 1, 0xFFFFFFFF, 0, 0), e.EINVAL),
        (request(0x87, command("LIST")), e.ENOTTY),
        (request(0x86, b""), e.EFAULT),
        (request(0x86, bytes(7)), e.EFAULT),
        (request(0x86, u64(48) + command("LIST")[8:]), e.EFAULT),
    ],
)
def test_what_is_no_request(bus: Bus, frame: bytes, number: int) -> None:
    peer = Peer(bus.path)
    peer.raw(frame)
    answer = peer.get()
    assert e.errorcode[answer.error] == e.errorcode[number]
    assert answer.body == b""
    assert peer.do("LIST", command("LIST", 15))


def test_quiet(bus: Bus) -> None:
    peer = Peer(bus.path)
    peer.put("NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b")), flags=QUIET)
    peer.put("NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a")), flags=QUIET)
    # The first has no answer, so the first one that comes is of the second.
    frame = peer.get()
    assert (frame.serial, frame.error) == (peer.serial, e.EINVAL)
    assert peer.do("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.b")))


def test_frees_come_first(bus: Bus) -> None:
    peer = Peer(bus.path)
    first, second = (
        struct.unpack_from("<Q", peer.do("LIST", command("LIST", 15)).body, 24)[0] for _ in range(2)
    )
    name = command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b"))
    frame = peer.ask("NAME_ACQUIRE", name, frees=(first, 8 * 12345, second))
    assert frame.error == e.ENXIO
    # Both are free; the command was not done.
    for offset in (first, second):
        assert peer.ask("FREE", command("FREE", 0, u64(offset))).error == e.ENXIO
    release = command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.b"))
    assert peer.ask("NAME_RELEASE", release).error == e.ESRCH
    offset = struct.unpack_from("<Q", peer.do("LIST", command("LIST", 15)).body, 24)[0]
    assert peer.do("NAME_ACQUIRE", name, frees=(offset,))
    assert refused(Socket(bus.path).do, "GRANT", frees=(0,)) == "EBADFD"


def test_requests_are_done_in_order(bus: Bus) -> None:
    peer = Peer(bus.path)
    serials = [peer.put("LIST", command("LIST", 15)) for _ in range(100)]
    assert [peer.get().serial for _ in range(100)] == serials


def test_a_waiting_call_stops_nobody(bus: Bus) -> None:
    caller, callee = Peer(bus.path), Peer(bus.path)
    body = command("SEND", c.SEND_SYNC_REPLY, u64(80)) + message(callee.id, cookie=7, **CALL)
    serial = caller.put("SEND", body)
    assert caller.do("LIST", command("LIST", 15))
    caller.raw(request(0x90, body, serial))
    frame = caller.get()
    assert (frame.serial, frame.error) == (serial, e.EBUSY)
    callee.recv()
    assert callee.say(caller.id, b"done", timeout=7).error == 0
    frame = caller.get()
    assert (frame.serial, frame.error) == (serial, 0)
    offset, size, flags = struct.unpack_from("<QQQ", frame.body, 32)
    assert (caller.at(offset, size).payload, flags) == (b"done", 0)


# SEND


def test_payload_in_all_places(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    box = unnamed(b"....in the outbox....")
    sender.do("OUTBOX", fds=(box,))
    os.close(box)
    items = item(c.ITEM_PAYLOAD_VEC, u64(8, 80)) + item(c.ITEM_PAYLOAD_VEC, u64(5, 0))
    items += item(c.ITEM_PAYLOAD_VEC, u64(13, OUTBOX + 4))
    assert sender.send(message(receiver.id, items), b"in frame").error == 0
    assert receiver.recv().payload == b"in frame" + bytes(5) + b"in the outbox"


@pytest.mark.parametrize("order", ["fo", "of", "fof", "offo"])
def test_payload_is_in_order(bus: Bus, order: str) -> None:
    """Of the frame and of the outbox by turns; nothing else about these messages is special."""
    sender, receiver = Peer(bus.path), Peer(bus.path)
    box = os.memfd_create("box")
    os.write(box, b"outbox")
    sender.do("OUTBOX", fds=(box,))
    os.close(box)
    places = {"f": u64(5, 80), "o": u64(6, OUTBOX)}
    items = b"".join(item(c.ITEM_PAYLOAD_VEC, places[place]) for place in order)
    assert sender.send(message(receiver.id, items), b"frame").error == 0
    said = {"f": b"frame", "o": b"outbox"}
    assert receiver.recv().payload == b"".join(said[place] for place in order)


@pytest.mark.parametrize("where", [1, 20, 24 - 8, 1 << 16, OUTBOX, OUTBOX - 8, (1 << 64) - 8])
def test_payload_that_is_not_there(bus: Bus, where: int) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    vec = item(c.ITEM_PAYLOAD_VEC, u64(8, where))
    assert sender.send(message(receiver.id, vec)).error == e.EFAULT


@pytest.mark.parametrize("where", [0, 8, 81, 84, 1 << 20, OUTBOX])
def test_message_that_is_not_there(bus: Bus, where: int) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    body = command("SEND", 0, u64(where)) + message(receiver.id)
    assert sender.ask("SEND", body).error == e.EFAULT


def test_outbox_has_its_end(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    box = unnamed()
    os.ftruncate(box, 4096)
    sender.do("OUTBOX", fds=(box,))
    for start, size, number in ((0, 4096, 0), (1, 4096, e.EFAULT), (4096, 1, e.EFAULT)):
        vec = item(c.ITEM_PAYLOAD_VEC, u64(size, OUTBOX + start))
        assert sender.send(message(receiver.id, vec)).error == number
    other = unnamed(b"other")
    sender.do("OUTBOX", fds=(other,))
    receiver.recv()
    assert sender.send(message(receiver.id, item(c.ITEM_PAYLOAD_VEC, u64(5, OUTBOX)))).error == 0
    assert receiver.recv().payload == b"other"


def test_outbox_for_many(bus: Bus) -> None:
    """A broadcast has more than one receiver, and monitors see what they see."""
    sender, monitor = Peer(bus.path), Peer(bus.path, c.HELLO_MONITOR)
    receivers = [Peer(bus.path) for _ in range(3)]
    for peer in receivers:
        peer.do("MATCH_ADD", command("MATCH_ADD", 0, u64(1)))
    box = unnamed(b"to all")
    sender.do("OUTBOX", fds=(box,))
    vec = item(c.ITEM_PAYLOAD_VEC, u64(6, OUTBOX))
    assert sender.send(message(c.DST_BROADCAST, bloom() + vec, c.SIGNAL)).error == 0
    for peer in receivers:
        while (got := peer.recv()).src != sender.id:
            pass
        assert got.payload == b"to all"
    while (got := monitor.recv()).src != sender.id:
        pass
    assert got.payload == b"to all"


def test_what_an_outbox_may_be(bus: Bus) -> None:
    peer = Peer(bus.path)
    with open("/dev/shm/jitney-test", "w+b") as file:
        os.unlink("/dev/shm/jitney-test")
        assert peer.do("OUTBOX", fds=(file.fileno(),))
    ends = os.pipe()
    assert refused(peer.do, "OUTBOX") == "EBADF"
    assert refused(peer.do, "OUTBOX", fds=(ends[0],)) == "EMEDIUMTYPE"
    with open("/proc/self/status", "rb") as file:
        assert refused(peer.do, "OUTBOX", fds=(file.fileno(),)) == "EMEDIUMTYPE"
    write_only = os.open(f"/proc/self/fd/{unnamed()}", os.O_WRONLY)
    assert refused(peer.do, "OUTBOX", fds=(write_only,)) == "EBADF"


def test_memfd_is_handed_on(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    fd = sealed(b"0123456789")
    assert sender.send(message(receiver.id, memfd_item(5, 2)), fds=(fd,)).error == 0
    frame, got = receiver.try_recv()
    assert got is not None
    assert struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"") == (2, 5, 0, 0)
    assert os.fstat(frame.fds[0]).st_ino == os.fstat(fd).st_ino
    assert os.pread(frame.fds[0], 5, 2) == b"23456"
    assert receiver.msg_flags == 0


def test_memfds_that_are_refused(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    for seals in (0, 7, 11, 13, 14):
        data = message(receiver.id, memfd_item(5))
        assert sender.send(data, fds=(sealed(b"12345", seals),)).error == e.ETXTBSY
    assert (
        sender.send(message(receiver.id, memfd_item(6)), fds=(sealed(b"12345"),)).error == e.EFAULT
    )
    pipe = os.pipe()[0]
    assert sender.send(message(receiver.id, memfd_item(6)), fds=(pipe,)).error == e.EMEDIUMTYPE
    assert sender.send(message(receiver.id, memfd_item(6, 0, 1)), fds=(pipe,)).error == e.EBADF


def test_descriptors(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    (a, b), (d, f) = os.pipe(), os.pipe()
    assert sender.send(message(receiver.id, fds_item(1, 0, 1)), fds=(b, f)).error == 0
    frame, got = receiver.try_recv()
    assert got is not None
    # Three items, three places, as they were named.
    assert struct.unpack("<3i", got.get(c.ITEM_FDS) or b"") == (0, 1, 2)
    inodes = [os.fstat(fd).st_ino for fd in frame.fds]
    assert inodes == [os.fstat(fd).st_ino for fd in (d, a, d)]


def test_descriptors_for_one_who_takes_none(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path, 0)
    assert sender.send(message(receiver.id, fds_item(0)), fds=os.pipe()).error == e.ECOMM
    assert sender.send(message(receiver.id, memfd_item(5)), fds=(sealed(b"12345"),)).error == 0
    frame, got = receiver.try_recv()
    assert got is not None
    assert frame.fds == []
    assert receiver.msg_flags == c.RECV_INCOMPLETE_FDS
    assert struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"")[2] == -1


def test_a_look_brings_no_descriptors(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    sender.send(message(receiver.id, fds_item(0)), fds=os.pipe())
    frame, got = receiver.try_recv(c.RECV_PEEK)
    assert got is not None
    assert (frame.fds, got.get(c.ITEM_FDS)) == ([], b"\xff" * 4)
    frame, got = receiver.try_recv()
    assert len(frame.fds) == 1


def test_descriptors_of_an_answer(bus: Bus) -> None:
    caller, callee = Peer(bus.path), Peer(bus.path)
    body = command("SEND", c.SEND_SYNC_REPLY, u64(80)) + message(callee.id, cookie=7, **CALL)
    serial = caller.put("SEND", body)
    caller.do("LIST", command("LIST"))
    callee.send(message(caller.id, fds_item(0), timeout=7), fds=(unnamed(b"x"),))
    frame = caller.get()
    assert (frame.serial, frame.error, len(frame.fds)) == (serial, 0, 1)
    assert os.pread(frame.fds[0], 9, 0) == b"x"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_no_sockets_that_carry_others(bus: Bus, kind: int) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    a, _ = socket.socketpair(socket.AF_UNIX, kind)
    own = sender.sock.fileno()
    for fd in (a.fileno(), own):
        assert sender.send(message(receiver.id, fds_item(0)), fds=(fd,)).error == e.EOPNOTSUPP
    tcp = socket.socket()
    path = os.open(bus.path, os.O_PATH)
    assert sender.send(message(receiver.id, fds_item(0, 1)), fds=(tcp.fileno(), path)).error == 0


def test_numbers(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    ends = os.pipe()
    items = fds_item(0, 1) + memfd_item(3, 0, 2)
    sender.send(message(receiver.id, items), fds=(*ends, sealed(b"abc")))
    _, got = receiver.try_recv()
    assert got is not None
    place = u64(receiver.offset)
    assert refused(receiver.do, "NUMBERS", u64(8) + bytes(12)) == "ENXIO"
    assert refused(receiver.do, "NUMBERS", place + bytes(8)) == "EINVAL"
    assert refused(receiver.do, "NUMBERS", bytes(7)) == "EINVAL"
    receiver.do("NUMBERS", place + struct.pack("<3i", 70, 71, 72))
    got = Got(receiver.map[receiver.offset : receiver.offset + got.size])
    assert struct.unpack("<2i", got.get(c.ITEM_FDS) or b"") == (70, 71)
    assert struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"")[2] == 72
    assert refused(receiver.do, "NUMBERS", place + struct.pack("<3i", 1, 2, 3)) == "ENXIO"
    sender.send(message(receiver.id, items), fds=(*ends, sealed(b"abc")))
    receiver.try_recv()
    receiver.free(receiver.offset)
    assert refused(receiver.do, "NUMBERS", u64(receiver.offset) + bytes(12)) == "ENXIO"


def test_cancel_descriptor(bus: Bus) -> None:
    caller, callee = Peer(bus.path), Peer(bus.path)
    event = os.eventfd(0)
    cancel = item(c.ITEM_CANCEL_FD, struct.pack("<i", 0))
    head = command("SEND", c.SEND_SYNC_REPLY, u64(0), cancel)
    head = head[:24] + u64(24 + len(head)) + head[32:]
    data = head + message(callee.id, cookie=7, **CALL)
    serial = caller.put("SEND", data, (event,))
    assert caller.do("LIST", command("LIST"))
    os.eventfd_write(event, 1)
    frame = caller.get()
    assert (frame.serial, frame.error) == (serial, e.ECANCELED)
    assert caller.ask("SEND", data, (caller.sock.fileno(),)).error == e.EINVAL


# The pool


def test_pool_is_for_reading(bus: Bus) -> None:
    peer = Socket(bus.path)
    assert refused(peer.do, "POOL") == "EBADFD"
    frame = peer.do("HELLO", command("HELLO", 1, u64(0, 0, 0, 0, POOL)))
    again = peer.do("POOL")
    for fd in (*frame.fds, *again.fds):
        assert os.fstat(fd).st_size == POOL
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(PermissionError):
            mmap.mmap(fd, POOL, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")


@kernel.needs_memfd
def test_pool_is_sealed(bus: Bus) -> None:
    peer = Socket(bus.path)
    frame = peer.do("HELLO", command("HELLO", 1, u64(0, 0, 0, 0, POOL)))
    for fd in (*frame.fds, *peer.do("POOL").fds):
        assert fcntl.fcntl(fd, 1034) & 6 == 6  # SHRINK, GROW
        # Not even who may open it anew (root may all) can write to it.
        try:
            anew = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        except PermissionError:
            continue
        with pytest.raises(PermissionError):
            os.write(anew, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(anew, 4096)


def test_size_of_a_pool(bus: Bus) -> None:
    peer = Socket(bus.path)
    assert refused(peer.do, "HELLO", command("HELLO", 1, u64(0, 0, 0, 0, 4097))) == "EINVAL"
    assert refused(peer.do, "HELLO", command("HELLO", 1, u64(0, 0, 0, 0, 1 << 40))) == "ENOMEM"
    assert peer.do("HELLO", command("HELLO", 1, u64(0, 0, 0, 0, 4096)))


# Being told


def test_wake(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), Peer(bus.path)
    for _ in range(3):
        sender.say(receiver.id, b"x")
    assert receiver.push().op == WAKE
    receiver.do("LIST", command("LIST"))
    assert receiver.quiet()  # once is enough
    receiver.recv()
    receiver.put("WOKEN")
    assert receiver.push().op == WAKE  # there is more
    receiver.recv()
    receiver.recv()
    sender.say(receiver.id, b"x")
    receiver.do("LIST", command("LIST"))
    assert receiver.quiet()  # it was not told that the last one was taken
    receiver.recv()
    receiver.put("WOKEN")
    receiver.do("LIST", command("LIST"))
    assert receiver.quiet()
    sender.say(receiver.id, b"x")
    assert receiver.push().op == WAKE


def test_readable_while_something_is_queued(bus: Bus) -> None:
    """What the page promises to who does as it says."""
    sender, receiver = Peer(bus.path), Peer(bus.path)
    poll = select.poll()
    poll.register(receiver.sock, select.POLLIN)
    for n in range(4):
        sender.say(receiver.id, b"%d" % n)
    for n in range(4):
        assert receiver.pushed or poll.poll(10_000)
        assert receiver.recv().payload == b"%d" % n
        if receiver.pushed:
            assert receiver.pushed.popleft().op == WAKE
            receiver.put("WOKEN")
    receiver.do("LIST", command("LIST"))
    assert not receiver.pushed
    assert not poll.poll(50)


def fed(bus: Bus, credit: int) -> Peer:
    return Peer(bus.path, credit=credit)


def taken(peer: Peer) -> tuple[Got, tuple[int, int, int, int], list[int]]:
    frame = peer.push()
    assert (frame.op, frame.serial, frame.error) == (MESSAGE, 0, 0)
    offset, size, flags, lost = struct.unpack("<4Q", frame.body)
    return peer.at(offset, size), (offset, size, flags, lost), frame.fds


def test_credit(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), fed(bus, 2)
    for n in range(4):
        assert sender.say(receiver.id, b"%d" % n, priority=-n).error == 0
    first, (offset, *_), _ = taken(receiver)
    second, (other, *_), _ = taken(receiver)
    assert [first.payload, second.payload] == [b"0", b"1"]
    receiver.do("LIST", command("LIST"))
    assert receiver.quiet()
    receiver.put("GRANT", frees=(offset, other), credit=1)
    assert taken(receiver)[0].payload == b"2"
    receiver.do("LIST", command("LIST"), credit=10)
    assert taken(receiver)[0].payload == b"3"
    assert refused(receiver.do, "FREE", command("FREE", 0, u64(offset))) == "ENXIO"


def test_fed_with_descriptors(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), fed(bus, 8)
    sender.send(message(receiver.id, memfd_item(4)), fds=(sealed(b"1234"),))
    got, (offset, _, flags, lost), fds = taken(receiver)
    assert (flags, lost) == (0, 0)
    assert os.pread(fds[0], 4, 0) == b"1234"
    receiver.do("NUMBERS", u64(offset) + struct.pack("<i", 99))
    got = receiver.at(offset, got.size)
    assert struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"")[2] == 99


def test_credit_has_an_end(bus: Bus) -> None:
    sender, receiver = Peer(bus.path), fed(bus, 1)
    for _ in range(3):
        receiver.do("LIST", command("LIST"), credit=0xFFFFFFFF)
    n = 0
    # As many as it may be handed over, each taken at once: no quota is in the way.
    for n in range(1030):
        if sender.say(receiver.id, b"x", cookie=n).error:
            break
        if n < 1024:
            taken(receiver)
    receiver.do("LIST", command("LIST"))
    assert receiver.quiet()


def test_lost_messages_are_told(bus: Bus) -> None:
    sender = Peer(bus.path)
    receiver = Peer(bus.path, pool=4096, credit=1)
    receiver.do("MATCH_ADD", command("MATCH_ADD", 0, u64(1), item(c.ITEM_ID, u64(sender.id))))
    for _ in range(50):
        sender.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
    offsets = []
    lost = kept = 0
    while True:
        _, (offset, _, _, before), _ = taken(receiver)
        offsets.append(offset)
        kept += 1
        lost += before
        receiver.put("GRANT", frees=(offset,), credit=1)
        receiver.do("LIST", command("LIST"))
        if not receiver.pushed and receiver.quiet():
            break
    sender.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
    lost += taken(receiver)[1][3]
    assert kept + lost == 50
    assert lost > 0


def test_end_of_a_connection(bus: Bus) -> None:
    peer = Peer(bus.path)
    token = peer.do("OPEN", struct.pack("<II", 1, 0)).body[8:]
    other = Socket(bus.path)
    other.do("ATTACH", token)
    serial = peer.put("BYEBYE", command("BYEBYE"))
    assert peer.get().serial == serial
    with pytest.raises(EOFError):
        peer.get()
    poll = select.poll()
    poll.register(peer.sock, 0)
    assert poll.poll(10_000)[0][1] & select.POLLHUP
    for _ in range(2):
        assert refused(other.do, "LIST", command("LIST")) == "ECONNRESET"
    late = Socket(bus.path)
    assert refused(late.do, "ATTACH", token) == "EBADF"


def over(peer: Socket) -> bool:
    try:
        peer.get()
    except EOFError:
        return True
    return False


def test_end_of_a_bus(bus: Bus, server: Any) -> None:
    second = Bus(server.path, "second")
    peer, monitor = Peer(second.path), Peer(second.path, c.HELLO_MONITOR)
    opened = Socket(second.path)
    opened.do("OPEN", struct.pack("<II", 1, 0))
    second.close()
    for one in (peer, monitor):
        while not over(one):
            pass
    assert refused(opened.do, "HELLO", command("HELLO", 1, u64(0, 0, 0, 0, POOL))) == "ESHUTDOWN"
    assert not second.path.exists()
    assert not second.path.parent.exists()
