"""The client on a real bus: messages, calls, descriptors, names, matches and the ends of things."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import kernel
import pytest

from jitney import client
from jitney.broker.kdbus import constants as c
from jitney.client import Connection, Message, Name
from jitney.client.frames import FormatError
from jitney.client.items import NameAdded, NameRemoved
from jitney.client.memory import Outbox

SOON = 30.0
Opener = Callable[..., Awaitable[Connection]]


# On a stream a read may have several frames, and the bus gives what descriptors came with it to the
# first of them.
kept_apart = pytest.mark.parametrize("stream", [False])


async def next_of(conn: Connection) -> Message:
    message = await asyncio.wait_for(conn.receive(), SOON)
    assert message is not None
    return message


async def settled(conn: Connection) -> None:
    """What went out before this, the bus has done."""
    await conn.listing(names=False)


def answering(conn: Connection) -> asyncio.Task[None]:
    """Answers each call with its own payload, until it is cancelled."""

    async def answer() -> None:
        async for message in conn.messages():
            with message:
                if message.wants_reply:
                    await conn.reply(message, bytes(message.payload), quiet=True)

    return asyncio.create_task(answer())


# Messages


async def test_a_message_is_seen_in_the_pool(conn: Opener) -> None:
    a, b = await conn(), await conn()
    cookie = await a.send(b.id, b"hello", priority=-3, payload_type=7)
    with await next_of(b) as message:
        assert (message.src, message.dst, message.cookie) == (a.id, b.id, cookie)
        assert (message.priority, message.payload_type, message.reply_to) == (-3, 7, 0)
        assert not message.wants_reply
        assert not message.is_signal
        payload = message.payload
        assert payload == b"hello"
        assert payload.readonly
        assert payload.obj is b._pool.map
    with pytest.raises(ValueError, match="released"):
        bytes(payload)
    with pytest.raises(ValueError, match="freed"):
        _ = message.parts


@kept_apart
@pytest.mark.parametrize("size", [0, 1, 4096, 60_000, 66_000, 200_000])
async def test_payload_of_any_size(conn: Opener, size: int) -> None:
    a, b = await conn(), await conn(pool_size=8 << 20)
    data = os.urandom(size)
    await a.send(b.id, data)
    with await next_of(b) as message:
        assert message.payload == data
    used_outbox = a._sender.outbox is not None
    assert used_outbox == (size > 65_000)


@kept_apart
async def test_parts_keep_their_order(conn: Opener) -> None:
    a, b = await conn(), await conn()
    await a.send(b.id, [b"one", bytearray(b"two"), 5, memoryview(b"three")])
    with await next_of(b) as message:
        assert [bytes(part) for part in message.parts] == [b"one", b"two", bytes(5), b"three"]
        assert message.payload == b"onetwo" + bytes(5) + b"three"
    await a.send(b.id, [b"one", b"two", b"three"])
    with await next_of(b) as message:
        assert message.payload == b"onetwothree"
        assert message.payload.obj is b._pool.map, "parts in a row are one piece"


@kernel.needs_memfd
@kept_apart
async def test_a_memfd_among_parts(conn: Opener) -> None:
    a, b = await conn(), await conn()
    with client.sealed(b"from a memfd") as memfd:
        await a.send(b.id, [b"one", b"two", memfd, 5, b"three"])
    with await next_of(b) as message:
        assert [bytes(part) for part in message.parts] == [
            b"one", b"two", b"from a memfd", bytes(5), b"three"
        ]  # fmt: skip
        assert message.payload == b"onetwofrom a memfd" + bytes(5) + b"three"


@kernel.needs_memfd
@kept_apart
async def test_what_is_beyond_all_limits_goes_in_a_memfd(conn: Opener) -> None:
    a, b = await conn(), await conn()
    data = os.urandom(1 << 20) * 3
    await a.send(b.id, data)
    with await next_of(b) as message:
        assert message.payload == data
        (part,) = message.envelope.parts
        assert part.pack()[8:16] == struct.pack("<Q", c.ITEM_PAYLOAD_MEMFD)
        assert message.payload.readonly


@kept_apart
async def test_without_memfds_a_new_outbox_has_room(
    conn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "there is no such system call")

    monkeypatch.setattr(os, "memfd_create", missing)
    a, b = await conn(outbox_size=150_000), await conn(pool_size=64 << 20)
    data = [os.urandom(size) for size in (100_000, 100_000, 300_000, 70_000, 2 << 20)]
    await asyncio.gather(*(a.send(b.id, chunk) for chunk in data))
    for chunk in data:
        with await next_of(b) as message:
            assert message.payload == chunk
    assert not a._sender.outbox.held, "all of it may be written to again"
    with pytest.raises(OSError, match="no such system call"):
        await a.send(b.id, bytes((2 << 20) + 1))
    await a.send(b.id, b"and goes on")
    with await next_of(b) as message:
        assert message.payload == b"and goes on"


@kernel.needs_memfd
@kept_apart
async def test_a_part_of_a_memfd(conn: Opener) -> None:
    a, b = await conn(), await conn()
    whole = client.sealed(bytes(5000) + b"this" + bytes(10))
    await a.send(b.id, client.Memfd(whole.fd, 5000, 4))
    with await next_of(b) as message:
        assert message.payload == b"this"
    whole.close()


@kept_apart
async def test_the_outbox_may_be_full(conn: Opener) -> None:
    a, b = await conn(outbox_size=256 * 1024), await conn(pool_size=32 << 20)
    data = [os.urandom(100_000) for _ in range(6)]
    await asyncio.gather(*(a.send(b.id, chunk) for chunk in data))
    for chunk in data:
        with await next_of(b) as message:
            assert message.payload == chunk
    assert a._sender.outbox is not None
    assert not a._sender.outbox.held, "all of it may be written to again"


@kept_apart
async def test_descriptors(conn: Opener) -> None:
    a, b = await conn(), await conn()
    ours, theirs = os.pipe()
    memfd = client.sealed(b"and a memfd") if kernel.MEMFD else None
    await a.send(b.id, [memfd or b"and no memfd"], fds=[theirs, ours])
    if memfd is not None:
        memfd.close()
    os.close(theirs)
    message = await next_of(b)
    first, second = message.fds
    os.write(first, b"through")
    assert os.read(second, 10) == b"through"
    assert message.payload == (b"and a memfd" if kernel.MEMFD else b"and no memfd")
    kept, _ = message.take_fds()
    message.free()
    os.write(kept, b"more")
    assert os.read(ours, 10) == b"more"
    os.close(kept)
    os.close(second)
    os.close(ours)


@kept_apart
async def test_descriptors_are_closed_with_the_message(conn: Opener) -> None:
    a, b = await conn(), await conn()
    ours, theirs = os.pipe()
    await a.send(b.id, b"", fds=[theirs])
    os.close(theirs)
    message = await next_of(b)
    assert len(message.fds) == 1
    message.free()
    message.free()
    assert os.read(ours, 1) == b"", "nobody has the other end any more"
    os.close(ours)


@kept_apart
async def test_who_takes_no_descriptors(conn: Opener) -> None:
    a, b = await conn(), await conn(accept_fds=False)
    with pytest.raises(client.NoDescriptors):
        await a.send(b.id, b"", fds=[0])


async def test_room_is_given_back(conn: Opener) -> None:
    a, b = await conn(), await conn(pool_size=1 << 16, credit=2)
    for turn in range(40):
        await a.send(b.id, bytes([turn]) * 8000)
        with await next_of(b) as message:
            assert bytes(message.payload) == bytes([turn]) * 8000


async def test_a_full_queue_is_the_senders_error(conn: Opener) -> None:
    a, b = await conn(), await conn(pool_size=1 << 16, credit=1)
    sent = 0
    try:
        while sent < 300:
            await a.send(b.id, bytes(2000))
            sent += 1
    except client.QueueFull:
        pass
    assert 0 < sent < 300
    for _ in range(sent):
        (await next_of(b)).free()
    await a.send(b.id, b"again")


async def test_quiet_ones(conn: Opener) -> None:
    a, b = await conn(), await conn()
    for _ in range(5):
        await a.send(b.id, b"quiet", quiet=True)
    cookie = await a.send(999, b"nobody", quiet=True)
    await settled(a)
    assert [(number, error.errno) for number, error in a.refused] == [(cookie, errno.ENXIO)]
    for _ in range(5):
        with await next_of(b) as message:
            assert message.payload == b"quiet"


async def test_many_at_once_keep_their_order(conn: Opener) -> None:
    a, b = await conn(), await conn(pool_size=8 << 20)
    for number in range(200):
        await a.send(b.id, struct.pack("<I", number) * 10, quiet=True)
    seen = []
    for _ in range(200):
        with await next_of(b) as message:
            seen.append(struct.unpack_from("<I", message.payload)[0])
    assert seen == list(range(200))


async def test_several_readers_share_the_messages(conn: Opener) -> None:
    a, b = await conn(), await conn()
    seen: list[bytes] = []

    async def read() -> None:
        async for message in b.messages():
            with message:
                seen.append(bytes(message.payload))

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    for number in range(20):
        await a.send(b.id, b"%d" % number)
    b_gone = asyncio.gather(*readers[1:])
    await settled(b)
    b.close()
    await asyncio.wait_for(b_gone, SOON)
    assert sorted(seen, key=int) == [b"%d" % number for number in range(20)]


# Calls


@kept_apart
async def test_call(conn: Opener) -> None:
    a, b = await conn(), await conn()
    task = answering(b)
    for data in (b"small", bytes(100_000)):
        with await a.call(b.id, data) as answer:
            assert answer.payload == data
            assert answer.src == b.id
            assert answer.reply_to
    task.cancel()


async def test_calls_at_once_find_their_answers(conn: Opener) -> None:
    a, b = await conn(), await conn()
    task = answering(b)

    async def one(number: int) -> None:
        data = b"%d" % number
        with await a.call(b.id, data) as answer:
            assert answer.payload == data

    await asyncio.gather(*(one(number) for number in range(50)))
    task.cancel()


async def test_a_call_by_name(conn: Opener) -> None:
    a, b = await conn(), await conn()
    assert await b.acquire("org.example.Service") & Name.ACQUIRED
    task = answering(b)
    with await a.call("org.example.Service", b"x") as answer:
        assert answer.src == b.id
    with pytest.raises(client.NoSuchName):
        await a.call("org.example.Nobody", b"x")
    task.cancel()


async def test_a_call_that_nobody_answers(conn: Opener) -> None:
    a, b = await conn(), await conn()
    with pytest.raises(client.TimedOut) as caught:
        await a.call(b.id, b"x", timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    call = await next_of(b)
    assert call.wants_reply
    assert call.deadline < time.monotonic_ns()
    with pytest.raises(client.NotWaitedFor):
        await b.reply(call, b"too late")


async def test_a_callee_that_goes(conn: Opener) -> None:
    a, b = await conn(), await conn()
    call = asyncio.create_task(a.call(b.id, b"x"))
    (await next_of(b)).free()
    b.close()
    with pytest.raises(client.PeerGone):
        await asyncio.wait_for(call, SOON)


async def test_a_call_can_be_taken_back(conn: Opener) -> None:
    a, b = await conn(), await conn()
    call = asyncio.create_task(a.call(b.id, b"x"))
    with await next_of(b) as came:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await settled(a)
        with pytest.raises(client.NotWaitedFor):
            await b.reply(came, b"too late")
    assert not a._link.pending


async def test_an_answer_that_comes_too_late_is_thrown_away(conn: Opener) -> None:
    a, b = await conn(pool_size=1 << 16), await conn()
    for _ in range(30):
        call = asyncio.create_task(a.call(b.id, b"x"))
        with await next_of(b) as came:
            await b.reply(came, bytes(5000))
            # It is there, or on its way.
            call.cancel()
            try:
                (await call).free()
            except asyncio.CancelledError:
                pass
    await settled(a)
    assert not a._link.pending


async def test_an_answer_as_a_message(conn: Opener) -> None:
    a, b = await conn(), await conn()
    cookie = await a.request(b.id, b"x")
    with await next_of(b) as call:
        await b.reply(call, b"y")
    with await next_of(a) as answer:
        assert (answer.reply_to, bytes(answer.payload)) == (cookie, b"y")
    cookie = await a.request(b.id, b"x", timeout=0.05)
    with await next_of(a) as notice:
        assert notice.notification == client.ReplyTimedOut()
        assert notice.reply_to == cookie
    await a.request(b.id, b"x")
    b.close()
    with await next_of(a) as notice:
        assert notice.notification == client.ReplyDead()


# Names, signals and notifications


async def test_names(conn: Opener) -> None:
    a, b = await conn(), await conn()
    assert await a.acquire("org.example.A") == Name.PRIMARY | Name.ACQUIRED
    with pytest.raises(client.NameTaken) as caught:
        await b.acquire("org.example.A")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.command == "NAME_ACQUIRE"
    assert await b.acquire("org.example.A", Name.QUEUE) & Name.IN_QUEUE
    assert await a.names() == {"org.example.A": a.id}
    queued = await a.listing(names=False, queued=True)
    assert [info.id for info in queued] == [b.id]
    await a.release("org.example.A")
    assert await a.names() == {"org.example.A": b.id}
    with pytest.raises(client.NoSuchName):
        await a.release("org.example.B")
    assert {info.id for info in await a.listing(unique=True)} == {a.id, b.id}


async def test_notifications(conn: Opener) -> None:
    a = await conn()
    for kind in (NameAdded, NameRemoved):
        await a.add_match(client.OnName(kind, "org.example.B"))
    await a.add_match(client.OnIdAdded())
    await a.add_match(client.OnIdRemoved())
    b = await conn()
    await b.acquire("org.example.B")
    await b.acquire("org.example.Other")
    b.close()
    seen = []
    for _ in range(4):
        with await next_of(a) as message:
            assert message.src == 0
            seen.append(message.notification)
    assert seen[0] == client.IdAdded(b.id, c.HELLO_ACCEPT_FD)
    assert seen[1] == NameAdded("org.example.B", 0, 0, b.id, c.NAME_PRIMARY)
    gone = {type(notice): notice for notice in seen[2:]}
    assert gone[client.IdRemoved] == client.IdRemoved(b.id, c.HELLO_ACCEPT_FD)
    assert gone[NameRemoved] == NameRemoved("org.example.B", b.id, c.NAME_PRIMARY, 0, 0)


async def test_signals_and_filters(conn: Opener) -> None:
    a, b = await conn(), await conn()
    assert (a.bloom_size, a.bloom_hashes) == (8, 1)
    await b.add_match(client.BloomMask((b"\x01" + bytes(7),)), client.FromId(a.id))
    await a.signal(b"not for b", bloom=(0, b"\x02" + bytes(7)))
    await a.signal(b"for b", bloom=(0, b"\x03" + bytes(7)))
    await a.signal(b"for all")
    for expected in (b"for b", b"for all"):
        with await next_of(b) as message:
            assert message.payload == expected
            assert message.is_signal
    cookie = await b.add_match(client.FromName("org.example.Nobody"))
    await b.remove_match(cookie)
    with pytest.raises(client.NotWaitedFor):
        await b.remove_match(cookie)
    with pytest.raises(client.BusError) as caught:
        await b.add_match(client.BloomMask((bytes(9),)))
    assert caught.value.errno == errno.EDOM


async def test_broadcasts_that_were_lost_are_counted(conn: Opener) -> None:
    a, b = await conn(), await conn(pool_size=1 << 16, credit=1)
    await b.add_match()
    for _ in range(60):
        await a.signal(bytes(2000))
    seen = 0
    while b.lost + seen < 60:
        (await next_of(b)).free()
        seen += 1
        if not b.lost and seen % 8 == 0:
            await a.signal(b"the next one tells")
    assert b.lost > 0


# Who is who


async def test_metadata(conn: Opener) -> None:
    a = await conn(description="the-sender")
    wanted = c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_NAMES | c.ATTACH_TIMESTAMP
    b = await conn(attach_recv=wanted | c.ATTACH_DESCRIPTION)
    await a.acquire("org.example.A")
    await a.send(b.id, b"x")
    with await next_of(b) as message:
        told = message.metadata
        assert told.creds is not None
        assert told.creds.uid == os.getuid()
        assert told.pids is not None
        assert told.pids.pid == os.getpid()
        assert told.description == "the-sender"
        assert [owned.name for owned in told.names] == ["org.example.A"]
        assert told.timestamp is not None
        assert told.timestamp.number > 0
    await b.send(a.id, b"x")
    with await next_of(a) as message:
        assert message.metadata.creds is None, "nobody asked"


async def test_infos(conn: Opener, bus: Any) -> None:
    a = await conn(description="somebody")
    b = await conn()
    await a.acquire("org.example.A")
    for whom in (a.id, "org.example.A"):
        info = await b.conn_info(whom)
        assert info.id == a.id
        assert info.metadata.description == "somebody"
        assert info.metadata.creds is not None
        assert info.metadata.creds.euid == os.geteuid()
        assert info.metadata.pids is not None
        assert info.metadata.pids.pid == os.getpid()
    assert (await b.bus_creator_info()).metadata.bus_name == bus.name
    with pytest.raises(client.NoSuchPeer):
        await b.conn_info(999)
    assert len(a.bus_id) == 16
    assert a.bus_id == b.bus_id


async def test_update(conn: Opener) -> None:
    a, b = await conn(), await conn()
    await b.update(attach_recv=c.ATTACH_PIDS)
    await a.send(b.id, b"x")
    with await next_of(b) as message:
        assert message.metadata.pids is not None


# Others than ordinary connections, and endpoints


async def test_a_monitor_sees_all(conn: Opener) -> None:
    m = await conn(monitor=True)
    a, b = await conn(), await conn()
    with await next_of(m) as message:
        assert message.notification == client.IdAdded(a.id, c.HELLO_ACCEPT_FD)
    (await next_of(m)).free()
    await a.send(b.id, b"between us")
    with await next_of(m) as message:
        assert (message.src, message.dst, bytes(message.payload)) == (a.id, b.id, b"between us")


async def test_an_activator(conn: Opener) -> None:
    act = await conn(activator="org.example.Late")
    a = await conn()
    await a.send("org.example.Late", b"start")
    with pytest.raises(client.BusError) as caught:
        await a.send("org.example.Late", b"do not", auto_start=False)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    # It was handed over already; a second one waits in the bus.
    with await next_of(act) as message:
        assert message.name == "org.example.Late"


async def test_an_endpoint_with_a_policy(conn: Opener, bus: Any) -> None:
    inside = await conn()
    await inside.acquire("org.example.Open")
    await inside.acquire("org.example.Closed")
    talk = [client.Access(client.Right.TALK)]
    made = await client.make_endpoint(bus.path, "door", [("org.example.Open", talk)])
    async with made, await client.connect(made.path, pool_size=1 << 16) as outside:
        await outside.send("org.example.Open", b"x")
        (await next_of(inside)).free()
        assert set(await outside.names()) == {"org.example.Open"}
        await made.update([])
        with pytest.raises(client.NotPermitted):
            await outside.send("org.example.Open", b"x")
        made.close()
        assert await asyncio.wait_for(outside.receive(), SOON) is None
        with pytest.raises(ConnectionResetError):
            await outside.send(inside.id, b"x")


async def test_a_second_bus_of_that_name(front: Any, bus: Any) -> None:
    with pytest.raises(client.NameTaken):
        await client.make_bus(front.directory, "test")
    with pytest.raises(client.BusError) as caught:
        await client.make_bus(front.directory, "odd", bloom_size=7)
    assert caught.value.errno == errno.EINVAL


# Ends


async def test_the_bus_goes(conn: Opener, bus: Any) -> None:
    a, b = await conn(), await conn()
    call = asyncio.create_task(a.call(b.id, b"x"))
    held = await next_of(b)
    bus.close()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(call, SOON)
    assert await asyncio.wait_for(b.receive(), SOON) is None
    assert b.closed
    assert held.payload == b"x", "what we hold stays"
    held.free()


async def test_byebye(conn: Opener) -> None:
    a, b = await conn(credit=1), await conn()
    await a.byebye()
    assert a.closed
    with pytest.raises(ConnectionResetError):
        await a.send(b.id, b"x")
    a.close()


@kept_apart
async def test_closing_with_messages_in_hand(conn: Opener) -> None:
    a, b = await conn(), await conn()
    ours, theirs = os.pipe()
    await a.send(b.id, b"one")
    await a.send(b.id, b"two", fds=[theirs])
    os.close(theirs)
    held = await next_of(b)
    await settled(b)
    b.close()
    assert held.payload == b"one"
    held.free()
    assert os.read(ours, 1) == b"", "descriptors of what was not read are closed"
    os.close(ours)


async def test_what_cannot_be_connected_to(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError):
        await client.connect(tmp_path / "nothing")
    with pytest.raises(ValueError, match="credit"):
        await client.connect(tmp_path / "nothing", credit=0)


async def test_a_hello_that_is_refused(bus: Any) -> None:
    with pytest.raises(client.BusError) as caught:
        await client.connect(bus.path, pool_size=1000)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.command == "HELLO"


async def test_what_is_not_sent_takes_nothing_along(conn: Opener) -> None:
    """Neither credit nor places in the pool: a mistake of the caller's must not dry us out."""
    a, b = await conn(), await conn(credit=4)
    none = 1_000_000
    for _ in range(8):
        await a.send(b.id, b"hello")
        (await next_of(b)).free()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await b.send(a.id, b"", fds=[none])
        with pytest.raises(FormatError):
            await b.send(a.id, b"", fds=[0] * 20_000)
    assert not b._link.pending
    await settled(b)
    await a.send(b.id, b"hello")
    (await next_of(b)).free()


def test_the_outbox_outlives_the_last_serial() -> None:
    outbox = Outbox(1 << 16)
    try:
        for serial in (0xFFFF_FFFF, 1):
            assert outbox.write([memoryview(bytes(1000))], 1000) is not None
            outbox.hold(serial)
        outbox.answered(0xFFFF_FFFE)
        assert len(outbox.held) == 2
        outbox.answered(1)
        assert not outbox.held
    finally:
        outbox.close()
