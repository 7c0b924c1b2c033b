"""The short way of requests over FUSE: whatever comes, its answers are those of the long way.

Two file systems without a mount get the same requests. One asks the short way first, as the daemon
does, the other never. What they write to their device is compared, and their clients' memory. A
client is this process, whose memory is as good to be read as any other's.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kdbuskit import command, item, message, text, u64

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.message import Message
from jitney.kdbus import uapi
from jitney.kdbus.fuse import protocol as p
from jitney.kdbus.fuse.filesystem import Filesystem
from jitney.kdbus.fuse.ioctls import Ioctls
from jitney.kdbus.fuse.places import Places
from jitney.kdbus.fuse.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="FUSE is Linux's")

NOW, LATER = 1000, 1 << 40
POOL = 1 << 18
LARGE = 30_000
NAME = b"a.name"
ACTIVATED = b"b.name"
PEERS = 3


class Tree:
    """A file system with one bus and some connections on it."""

    def __init__(self, short: bool) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = theirs
        self.ours.setblocking(False)
        domain = Domain()
        domain.monotonic = domain.realtime = lambda: NOW
        self.fs = Filesystem(theirs.fileno(), domain, os.geteuid(), os.getegid())
        self.ioctls = Ioctls(self.fs, 0)
        # Without threads, answers come in one order.
        self.fs.crew.later = lambda job: job()  # type: ignore[method-assign]
        self.short = short
        self.taken = 0
        self.worker = Worker()
        self.worker.leading = True
        self.unique = 0
        # All that clients have in memory, for answers may come later.
        self.kept: list[Any] = []
        self.commands: list[Any] = []
        control = self.open([b"control"])
        bus = f"{os.geteuid()}-ways".encode()
        items = text(c.ITEM_MAKE_NAME, bus) + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1))
        self.ioctl(control, "BUS_MAKE", command("BUS_MAKE", 0, items=items))
        self.door = [bus, b"bus"]
        self.peers = [self.open(self.door) for _ in range(PEERS)]
        # The second wants to know what needs no look at the sender.
        asked = (0, c.ATTACH_NAMES | c.ATTACH_TIMESTAMP, 0)
        for number, peer in enumerate(self.peers):
            fields = u64(c.ATTACH_ALL, asked[number], 0, 0, POOL)
            self.ioctl(peer, "HELLO", command("HELLO", 0, fields))
        items = text(c.ITEM_NAME, NAME)
        self.ioctl(self.peers[1], "NAME_ACQUIRE", command("NAME_ACQUIRE", 0, items=items))

    def close(self) -> None:
        for handle in list(self.fs.handles.values()):
            handle.close()
        self.ours.close()
        self.device.close()

    def request(self, opcode: int, node: int, body: bytes) -> list[bytes]:
        """What was written for it, by what it begins with: answers and news."""
        self.unique += 1
        me = (os.geteuid(), os.getegid(), os.getpid())
        size = p.IN_HEADER.size + len(body)
        data = p.IN_HEADER.pack(size, opcode, self.unique, node, *me, 0, 0) + body
        self.worker.buffer[: len(data)] = data
        if self.short and self.fs.crew.quick.serve(self.worker, len(data)):
            self.taken += 1
        else:
            self.fs.handle(self.worker, len(data))
        out = []
        while True:
            try:
                out.append(self.ours.recv(1 << 18))
            except BlockingIOError:
                return sorted(out, key=lambda answer: answer[8:16])

    def open(self, path: list[bytes]) -> int:
        node = p.ROOT
        for name in path:
            (answer,) = self.request(p.LOOKUP, node, name + b"\0")
            (node,) = p.U64.unpack_from(answer, p.OUT_HEADER.size)
        (answer,) = self.request(p.OPEN, node, bytes(8))
        return int(p.U64.unpack_from(answer, p.OUT_HEADER.size)[0])

    def memory(self, data: bytes) -> Any:
        buffer = ctypes.create_string_buffer(data, len(data))
        self.kept.append((buffer, data))
        return buffer

    def ioctl(self, handle: int, name: str, data: bytes, shift: int = 0) -> tuple[Any, ...]:
        """What was written, and all commands afterwards, but for the addresses in them."""
        form = uapi.BY_NAME[name]
        # Who shifts it shifts what would be written there as well.
        buffer = ctypes.create_string_buffer(data, len(data) + 8)
        self.commands.append(buffer)
        address = ctypes.addressof(buffer) + shift
        n_in = form.size if form.ioctl >> 30 & uapi.WRITE else 0
        n_out = form.size if form.ioctl >> 30 & uapi.READ else 0
        head = p.IOCTL_IN.pack(handle, 0, form.ioctl, address, n_in, n_out)
        out = self.request(p.IOCTL, 0, head + data[:n_in])
        sent = (kept.raw for kept in self.commands if len(kept.raw) < 90)
        return out, [data[:24] + data[32:] for data in sent]

    # What tests do

    def send(self, peer: int, what: dict[str, Any]) -> tuple[Any, ...]:
        items = b""
        for data in what["parts"]:
            at = ctypes.addressof(self.memory(data)) if data is not None else 8
            items += item(c.ITEM_PAYLOAD_VEC, u64(len(data or b"123"), at))
        if what["zeros"]:
            items += item(c.ITEM_PAYLOAD_VEC, u64(what["zeros"], 0))
        if what["name"] is not None:
            items += text(c.ITEM_DST_NAME, what["name"])
        items += what["more"]
        fields = {key: what[key] for key in ("flags", "cookie", "timeout", "priority", "src")}
        sent = message(what["dst"], items, payload_type=what["payload_type"], **fields)
        sent = u64(len(sent) + what["longer"]) + sent[8:]
        data = command("SEND", what["send_flags"], u64(ctypes.addressof(self.memory(sent))))
        data = data[:16] + u64(what["return_flags"]) + data[24:]
        return self.ioctl(self.peers[peer], "SEND", data, what["shift"])

    def recv(self, peer: int, flags: int, return_flags: int) -> tuple[Any, ...]:
        data = command("RECV", flags)
        return self.ioctl(self.peers[peer], "RECV", data[:16] + u64(return_flags) + data[24:])

    def free(self, peer: int, offset: int, flags: int) -> tuple[Any, ...]:
        return self.ioctl(self.peers[peer], "FREE", command("FREE", flags, u64(offset)))

    def poll(self, peer: int, notify: bool) -> tuple[Any, ...]:
        body = p.POLL_IN.pack(self.peers[peer], 70 + peer, int(notify), 0)
        return (self.request(p.POLL, 0, body),)

    def byebye(self, peer: int) -> tuple[Any, ...]:
        return self.ioctl(self.peers[peer], "BYEBYE", command("BYEBYE"))

    def hello(self, flags: int, items: bytes = b"") -> tuple[Any, ...]:
        """Another connection; at most two of these, for their ids."""
        if len(self.peers) > PEERS + 1:
            return ()
        self.peers.append(self.open(self.door))
        data = command("HELLO", flags, u64(c.ATTACH_ALL, 0, 0, 0, POOL), items)
        out, _ = self.ioctl(self.peers[-1], "HELLO", data)
        # But for the bus's number, which is random.
        return ([answer[:80] for answer in out],)

    def monitor(self) -> tuple[Any, ...]:
        return self.hello(c.HELLO_MONITOR)

    def activator(self) -> tuple[Any, ...]:
        return self.hello(c.HELLO_ACTIVATOR, text(c.ITEM_NAME, ACTIVATED))

    def acquire(self, peer: int) -> tuple[Any, ...]:
        items = text(c.ITEM_NAME, ACTIVATED)
        return self.ioctl(self.peers[peer], "NAME_ACQUIRE", command("NAME_ACQUIRE", items=items))

    def untouched(self) -> bool:
        """Whether nothing was written to what clients sent."""
        return all(buffer.raw == data for buffer, data in self.kept)

    def connection(self, peer: int) -> Any:
        return self.fs.handles[self.peers[peer]].conn

    def pools(self) -> list[Any]:
        """What is in use of each pool, and what is in it."""
        out: list[Any] = []
        for number in range(len(self.peers)):
            if self.connection(number) is None:
                continue
            pool = self.connection(number).pool
            slices = [(part.offset, part.size) for part in pool.busy.values()]
            out.append([(at, pool.memory.read(at, size)) for at, size in sorted(slices)])
            out.append((pool.accounted, self.connection(number).quota))
        return out


# Ids are given in order: 1 is the bus, then its connections.
ID = 2
peers = st.integers(0, PEERS - 1)
rarely = st.sampled_from([0] * 12 + [1])


def plain(dst: int, **more: Any) -> dict[str, Any]:
    """A SEND about which nothing is special."""
    what: dict[str, Any] = {"dst": dst, "name": None, "parts": [b"hello"], "more": b""}
    for key in ("zeros", "flags", "timeout", "priority", "src", "longer", "send_flags"):
        what[key] = 0
    return {**what, "cookie": 1, "payload_type": 7, "return_flags": 0, "shift": 0, **more}


# Most of what is sent is in order but for one thing or two.
KINDS: list[dict[str, Any]] = [
    {},
    {"dst": 0, "name": NAME},
    {"dst": 0, "name": ACTIVATED},
    {"flags": c.EXPECT_REPLY, "timeout": LATER},
    {"flags": c.EXPECT_REPLY, "timeout": LATER, "send_flags": c.SEND_SYNC_REPLY},
    {"timeout": 1},
    {"timeout": 2},
]
ODD = {
    "dst": [0, 99, c.DST_BROADCAST],
    "name": [NAME, ACTIVATED, b"no.such", b"n", b"a\0b", b""],
    "parts": [
        [], [b"a", b"12345678"], [b"x" * 5000], [None], [b"z", None],
        [b"y" * LARGE], [b"y" * LARGE, b"z" * 7], [b"y" * LARGE, None],
    ],
    "zeros": [9],
    "more": [item(c.ITEM_FDS), item(99), bytes(4), bytes(16), u64(17, c.ITEM_DST_NAME)],
    "flags": [0, 1, 2, 3, 4, 8],
    "timeout": [0, 3, NOW, LATER],
    "priority": [-5, 7],
    "src": [ID, 77],
    "payload_type": [0],
    "longer": [-1, 8, -8],
    "send_flags": [0, 1, 2],
    "return_flags": [1],
    "shift": [1],
}  # fmt: skip
odd = st.sampled_from(sorted(ODD)).flatmap(
    lambda key: st.tuples(st.just(key), st.sampled_from(ODD[key]))
)
sends = st.builds(
    lambda dst, kind, cookie, changes: plain(
        **{"dst": dst, "cookie": cookie, **kind, **dict(changes)}
    ),
    st.sampled_from([ID, ID + 1, ID + 2]),
    st.sampled_from(KINDS),
    st.integers(1, 2),
    st.lists(odd, max_size=2),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), peers, sends),
        st.tuples(st.just("send"), peers, sends),
        st.tuples(st.just("recv"), peers, st.sampled_from([0] * 6 + [1, 2, 4]), rarely),
        st.tuples(st.just("free"), peers, st.sampled_from([0, 0, 104, 8, POOL, 3]), rarely),
        st.tuples(st.just("poll"), peers, st.booleans()),
        st.tuples(st.just("byebye"), st.just(2)),
        st.tuples(st.sampled_from(["monitor", "activator"])),
        st.tuples(st.just("acquire"), peers),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_same_answers(todo: list[tuple[Any, ...]]) -> None:
    short, long = Tree(True), Tree(False)
    try:
        for what, *arguments in todo:
            got = getattr(short, what)(*arguments)
            assert got == getattr(long, what)(*arguments)
        assert short.pools() == long.pools()
        assert short.untouched()
        assert long.untouched()
        assert short.ioctls.stays.away == long.ioctls.stays.away == 0
        assert len(short.ioctls.active) == len(long.ioctls.active)
    finally:
        short.close()
        long.close()


def test_a_call_goes_the_short_way() -> None:
    """Every request of it; otherwise nothing above says anything about the short way."""
    tree = Tree(True)
    tree.taken = 0
    tree.poll(1, True)
    waits, _ = tree.send(0, plain(ID + 1, flags=1, timeout=LATER, send_flags=1))
    # Nobody is answered, but who polls is told.
    assert [struct.unpack_from("=i", news, 4)[0] for news in waits] == [p.NOTIFY_POLL]
    tree.poll(1, True)
    tree.recv(1, 0, 0)
    tree.free(1, 0, 0)
    answered, _ = tree.send(1, plain(ID, timeout=1))
    assert [p.OUT_HEADER.unpack_from(answer)[2] for answer in answered if answer[8:16]][-1]
    tree.free(0, 0, 0)
    assert tree.taken == 7
    tree.close()


def test_who_kept_us_waiting_goes_the_long_way() -> None:
    tree = Tree(True)
    tree.send(0, plain(ID + 1))
    tree.fs.suspect(tree.fs.handles[tree.peers[0]])
    tree.taken = 0
    tree.worker.leading = False
    (answer,), _ = tree.send(0, plain(ID + 1))
    assert tree.taken == 0
    assert p.IOCTL_OUT.unpack_from(answer, p.OUT_HEADER.size)[0] == 0
    tree.close()


def test_large_payload_is_copied_once() -> None:
    """Nothing of it is in memory of ours."""
    tree = Tree(True)
    payload = os.urandom(LARGE)
    for part, copied in ((payload, False), (b"small", True)):
        tree.send(0, plain(ID + 2, parts=[part, b"more"]))
        assert (tree.worker.scratch is not None) == copied
        (entry,) = tree.connection(2).queue.entries.values()
        data = tree.connection(2).pool.memory.read(entry.slice.offset, entry.size)
        assert data[128 : 128 + len(part) + 4] == part + b"more"
        tree.recv(2, 0, 0)
    tree.close()


def test_receiver_that_goes_while_its_message_is_copied() -> None:
    tree = Tree(True)
    places = Places()
    sender, receiver = tree.connection(0), tree.connection(2)

    def sent() -> Message:
        made = Message(receiver.id, 0, 1, 0)
        made.add_data(None)
        return made

    first, second = sent(), sent()
    found = places.begin(sender, first, [0, LARGE], LARGE, sender.creds)
    assert found is not None
    assert found[0] is receiver
    # One at a time: more of a pool nobody can hold.
    assert places.begin(sender, second, [0, LARGE], LARGE, sender.creds) is None
    assert second.placed is None
    tree.byebye(2)
    assert places.receiver(sender, first, sender.creds) is None
    places.undo(sender, receiver, first)
    assert receiver.pool.accounted == 0
    # All but what HELLO said.
    assert list(receiver.pool.busy) == [0]
    assert not receiver.quota
    tree.close()
