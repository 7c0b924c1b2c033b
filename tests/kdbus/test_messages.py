"""What becomes of messages: payloads, queues, replies, quotas, matches, monitors, notifications."""

from __future__ import annotations

import errno as e
import struct

import pytest
from kdbuskit import POOL, Client, FakeFd, World, access, bloom, item, message, text, u64

from jitney.broker.kdbus import constants as c


def vec(client: Client, data: bytes) -> bytes:
    return item(c.ITEM_PAYLOAD_VEC, u64(len(data), client.memory.put(data)))


def call(world: World, after: int = 10**11) -> dict[str, int]:
    return {"flags": c.EXPECT_REPLY, "timeout": world.domain.monotonic() + after}


def pair(world: World, **more: bool) -> tuple[Client, Client]:
    return world.conn(**more), world.conn(**more)


# Payload


@pytest.mark.parametrize("installs", [False, True])
def test_payload(world: World, installs: bool) -> None:
    sender, receiver = pair(world, installs=installs)
    handle = sender.memory.fds[6] = FakeFd(b"in a memfd, all of it")
    items = vec(sender, b"odd") + item(c.ITEM_PAYLOAD_VEC, u64(11, 0)) + vec(sender, b"12345678")
    items += item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 5, 9, 6, 0))
    assert sender.send(message(receiver.id, items, priority=-3, cookie=9)) == 0
    got = receiver.recv()
    assert (got.src, got.dst, got.cookie, got.priority) == (sender.id, receiver.id, 9, -3)
    plain = b"odd" + bytes(11) + b"12345678"
    if installs:
        assert got.payload == plain
        start, size, fd, _ = struct.unpack("<QQiI", got.get(c.ITEM_PAYLOAD_MEMFD) or b"")
        # The number is put in by whoever installs it; over a socket, its place in the list.
        assert (start, size, fd) == (5, 9, 0 if handle.real >= 0 else -1)
        assert handle.holders == 2  # ours and that of what was received
    else:
        assert got.payload == plain + b"memfd, al"
        assert handle.holders == 1


def test_items_stay_as_they_are(world: World) -> None:
    sender, receiver = pair(world)
    receiver.listen()
    sender.send(message(c.DST_BROADCAST, bloom(3, bytes(range(64))), c.SIGNAL))
    assert receiver.recv().get(c.ITEM_BLOOM_FILTER) == u64(3) + bytes(range(64))


def test_descriptors_are_told_to_be_missing(core: World) -> None:
    sender, receiver = pair(core)
    handle = sender.memory.fds[5] = FakeFd()
    fds = item(c.ITEM_FDS, struct.pack("<2i", 5, 5))
    assert sender.send(message(receiver.id, fds)) == 0
    assert handle.holders == 3
    got = receiver.recv(c.RECV_PEEK)
    assert receiver.msg_flags == 0
    got = receiver.recv()
    assert receiver.msg_flags == c.RECV_INCOMPLETE_FDS
    assert got.get(c.ITEM_FDS) == b"\xff" * 8
    assert handle.holders == 1


def test_descriptors_where_they_can_be_given(core: World) -> None:
    sender, receiver = pair(core, installs=True)
    sender.memory.fds[5] = FakeFd()
    assert sender.send(message(receiver.id, item(c.ITEM_FDS, struct.pack("<i", 5)))) == 0
    conn = receiver.handle.conn
    assert conn is not None
    received, _ = conn.recv(0, 0)
    assert received is not None
    ((handle, place),) = received.fds
    assert handle is sender.memory.fds[5]
    assert conn.pool.memory.read(place, 4) == b"\xff" * 4


def test_descriptors_for_one_who_takes_none(world: World) -> None:
    sender, receiver = world.conn(), world.conn(0)
    handle = sender.memory.fds[5] = FakeFd()
    assert sender.send(message(receiver.id, item(c.ITEM_FDS, struct.pack("<i", 5)))) == e.ECOMM
    assert handle.holders == 1


# Queue


def test_priorities(world: World) -> None:
    sender, receiver = pair(world)
    for priority in (25, -600, 10, -35, -800, 10, -800):
        sender.send(message(receiver.id, priority=priority, cookie=priority & 0xFFFF))
    urgent = c.RECV_USE_PRIORITY
    assert [receiver.recv(urgent, 10).priority for _ in range(3)] == [-800, -800, -600]
    assert receiver.try_recv(urgent, -400) == e.EAGAIN
    assert receiver.recv().priority == 25  # the oldest, whatever it is
    assert [receiver.recv(urgent, 10).priority for _ in range(3)] == [-35, 10, 10]
    assert receiver.try_recv() == e.EAGAIN


def test_peek_and_drop(world: World) -> None:
    sender, receiver = pair(world)
    for cookie in (1, 2, 3):
        sender.send(message(receiver.id, cookie=cookie))
    assert [receiver.recv(c.RECV_PEEK).cookie for _ in range(2)] == [1, 1]
    receiver.do("RECV", c.RECV_DROP)
    assert receiver.recv().cookie == 2
    assert receiver.recv().cookie == 3
    conn = receiver.handle.conn
    assert conn is not None
    assert conn.pool.accounted == 0
    assert conn.quota == {}


def test_a_peeked_message_is_the_owners(world: World) -> None:
    sender, receiver = pair(world)
    sender.send(message(receiver.id))
    conn = receiver.handle.conn
    assert conn is not None
    received, _ = conn.recv(c.RECV_PEEK, 0)
    assert received is not None
    conn.free(received.offset)
    assert receiver.recv().cookie == 1


# Replies


def test_answer(world: World) -> None:
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)))
    assert callee.recv().flags == c.EXPECT_REPLY
    other = world.conn()
    assert other.send(message(caller.id, timeout=7)) == e.EBADSLT
    assert callee.send(message(caller.id, timeout=8)) == e.EBADSLT
    assert callee.send(message(caller.id, timeout=7)) == 0
    assert caller.recv().timeout == 7
    assert callee.send(message(caller.id, timeout=7)) == e.EBADSLT


def test_answers_need_no_policy(world: World) -> None:
    service = world.conn()
    service.acquire(b"foo.open")
    world.holder(b"foo.open", access(c.FOR_WORLD, c.TALK))
    client = world.conn(uid=1000)
    name = text(c.ITEM_DST_NAME, b"foo.open")
    assert client.send(message(0, name, cookie=3, **call(world))) == 0
    peer = world.conn(uid=1001)
    assert peer.send(message(client.id)) == e.EPERM
    service.recv()
    assert service.send(message(client.id, timeout=3)) == 0


@pytest.mark.parametrize("sync", [False, True])
def test_deadline(world: World, sync: bool) -> None:
    now = world.domain.monotonic()
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY if sync else 0)
    world.domain.monotonic = lambda: now + 10**11 // 2
    next_one = world.domain.expire()
    assert next_one is not None
    assert caller.answers == []
    assert caller.try_recv() == e.EAGAIN
    world.domain.monotonic = lambda: now + 2 * 10**11
    assert world.domain.expire() is None
    if sync:
        assert caller.answers == [e.ETIMEDOUT]
        assert caller.try_recv() == e.EAGAIN
    else:
        got = caller.recv()
        assert (got.src, got.dst, got.timeout, got.payload_type) == (0, caller.id, 7, 0)
        assert got.items[0].kind == c.ITEM_REPLY_TIMEOUT
    assert callee.send(message(caller.id, timeout=7)) == e.EBADSLT


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_callee_ends(world: World, sync: bool, read: bool) -> None:
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY if sync else 0)
    if read:
        callee.recv()
    callee.close()
    if sync:
        assert caller.answers == [e.EPIPE]
    else:
        assert caller.recv().items[0].kind == c.ITEM_REPLY_DEAD
    assert caller.try_recv() == e.EAGAIN


def test_dropped_call(world: World) -> None:
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)))
    callee.do("RECV", c.RECV_DROP)
    got = caller.recv()
    assert got.items[0].kind == c.ITEM_REPLY_DEAD
    assert got.timeout == 7


def test_waiting_call(world: World) -> None:
    caller, callee = pair(world)
    assert caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY) == -1
    callee.recv()
    callee.send(message(caller.id, vec(callee, b"here"), timeout=7))
    assert caller.answers == [0]
    data = caller.memory.read(caller.waiting.address, 56)
    offset, size, flags = struct.unpack_from("<QQQ", data, 32)
    assert caller.slice(offset, size).rstrip(b"\0").endswith(b"here")
    assert flags == 0
    assert caller.try_recv() == e.EAGAIN  # it never was in the queue
    caller.do("FREE", 0, u64(offset))


def test_caller_of_a_waiting_call_ends(world: World) -> None:
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY)
    callee.recv()
    caller.do("BYEBYE")
    assert caller.answers == [e.ECONNRESET]
    assert callee.send(message(caller.id, timeout=7)) == e.ENXIO


def test_cancelled_call(world: World) -> None:
    caller, callee = pair(world)
    caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY)
    world.bus.cancel(caller.waiting.pending, e.ECANCELED)
    assert caller.answers == [e.ECANCELED]
    callee.recv()
    assert callee.send(message(caller.id, timeout=7)) == e.EBADSLT


def test_answer_with_descriptors_for_one_who_takes_none(world: World) -> None:
    caller, callee = world.conn(0), world.conn()
    callee.memory.fds[5] = FakeFd()
    caller.send(message(callee.id, cookie=7, **call(world)), c.SEND_SYNC_REPLY)
    callee.recv()
    fds = item(c.ITEM_FDS, struct.pack("<i", 5))
    assert callee.send(message(caller.id, fds, timeout=7)) == e.ECOMM
    assert caller.answers == [e.EREMOTEIO]


def test_pending_calls(world: World) -> None:
    caller = world.conn()
    callees = [world.conn() for _ in range(3)]
    for number in range(c.REQUESTS_MAX):
        assert caller.send(message(callees[number % 2].id, cookie=number, **call(world))) == 0
    assert caller.send(message(callees[2].id, **call(world))) == e.EMLINK
    callees[0].recv()
    callees[0].send(message(caller.id, timeout=2))
    callees[0].recv()
    callees[0].send(message(caller.id, timeout=2))
    assert caller.send(message(callees[2].id, **call(world))) == 0


# What one user may have in another's pool


def test_share_of_a_pool(world: World) -> None:
    """A third of the half that is not the owner's; the next user gets a third of what is left."""
    receiver = world.conn()
    senders = [world.conn(uid=uid) for uid in (0, 1000)]
    receiver.acquire(b"foo.open")
    world.holder(b"foo.open", access(c.FOR_WORLD, c.TALK))
    name = text(c.ITEM_DST_NAME, b"foo.open")
    for sender, most in zip(senders, (POOL // 2 // 3, (POOL // 2 - POOL // 6) // 3), strict=True):
        sent = 0
        big = vec(sender, bytes(8192))
        while sender.send(message(0, name + big)) == 0:
            sent += 8192
        # Each is larger than its payload by what is told of its sender.
        assert most * 0.85 < sent <= most
        # Another connection of the same user has no share of its own.
        second = world.conn(uid=sender.creds.uid)
        assert second.send(message(0, name + vec(second, bytes(8192)))) == e.ENOBUFS


def test_number_of_messages(world: World) -> None:
    sender, receiver = world.conn(), world.open().hello(pool=64 * POOL)
    for _ in range(c.MSGS_MAX):
        assert sender.send(message(receiver.id)) == 0
    assert sender.send(message(receiver.id)) == e.ENOBUFS
    receiver.recv()
    assert sender.send(message(receiver.id)) == 0


def test_number_of_descriptors(world: World) -> None:
    sender, receiver = pair(world)
    sender.memory.fds[5] = FakeFd()
    ten = item(c.ITEM_FDS, struct.pack("<10i", *[5] * 10))
    assert sender.send(message(receiver.id, ten)) == 0
    assert sender.send(message(receiver.id, ten)) == e.EMFILE


def test_pool_of_the_asker_is_full(world: World) -> None:
    client = world.open().hello(pool=c.PAGE)
    for _ in range(c.PAGE):
        number = client.error("BUS_CREATOR_INFO")
        if number:
            break
    assert number == e.EXFULL


def test_lost_broadcasts(world: World) -> None:
    sender = world.conn()
    receiver = world.open().hello(pool=c.PAGE)
    receiver.listen()
    for _ in range(50):
        assert sender.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL)) == 0
    conn = receiver.handle.conn
    assert conn is not None
    assert conn.readable
    receiver.recv()
    kept = 1
    assert receiver.return_flags == c.RECV_DROPPED_MSGS
    lost = receiver.lost
    while receiver.try_recv() != e.EAGAIN:
        kept += 1
        assert receiver.lost == 0
        assert receiver.return_flags == 0
    assert kept + lost == 50


def test_pools_come_together_again(world: World) -> None:
    sender, receiver = pair(world)
    for size in (1, 700, 33, 4096, 5):
        sender.send(message(receiver.id, vec(sender, bytes(size))))
    for _ in range(5):
        receiver.recv()
    conn = receiver.handle.conn
    assert conn is not None
    assert [(part.offset, part.size) for part in conn.pool.unused.values()] == [(0, POOL)]


# Matches


def hears(world: World, rule: bytes, sender: Client, data: bytes) -> bool:
    receiver = world.conn()
    receiver.listen(rule)
    assert sender.send(data) == 0
    heard = receiver.try_recv() != e.EAGAIN
    receiver.close()
    return heard


def test_rules(world: World) -> None:
    sender = world.conn()
    sender.acquire(b"foo.me")
    data = message(c.DST_BROADCAST, bloom(), c.SIGNAL)
    ident = item(c.ITEM_ID, u64(sender.id))
    for rule, heard in (
        (b"", True),
        (ident, True),
        (item(c.ITEM_ID, u64(c.MATCH_ANY)), True),
        (item(c.ITEM_ID, u64(sender.id + 100)), False),
        (item(c.ITEM_DST_ID, u64(c.DST_BROADCAST)), True),
        (item(c.ITEM_DST_ID, u64(5)), False),
        (text(c.ITEM_NAME, b"foo.me"), True),
        (text(c.ITEM_NAME, b"foo.other"), False),
        (ident + text(c.ITEM_NAME, b"foo.other"), False),
        (item(c.ITEM_ID_ADD, u64(c.MATCH_ANY, 0)), False),
    ):
        assert hears(world, rule, sender, data) == heard


def test_bloom_generations(world: World) -> None:
    sender = world.conn()
    masks = bytes([0x55]) + bytes(63) + bytes([0, 0xAA]) + bytes(62)
    rule = item(c.ITEM_BLOOM_MASK, masks)
    for generation, bits, heard in (
        (0, b"", False),
        (0, b"\x55", True),
        (0, b"\xff", True),
        (1, b"\xff", False),
        (1, b"\x00\xaa", True),
        (9, b"\x00\xaa", True),  # as the last one there is
    ):
        data = message(c.DST_BROADCAST, bloom(generation, bits.ljust(64, b"\0")), c.SIGNAL)
        assert hears(world, rule, sender, data) == heard, (generation, bits)


def test_sets_and_cookies(world: World) -> None:
    client = world.conn()
    sender = world.conn()
    data = message(c.DST_BROADCAST, bloom(), c.SIGNAL)
    client.listen(item(c.ITEM_ID, u64(1)), cookie=1)
    client.listen(b"", cookie=2)
    client.listen(b"", cookie=2)
    sender.send(data)
    client.recv()
    assert client.try_recv() == e.EAGAIN  # once, however many sets fit
    client.do("MATCH_REMOVE", 0, u64(2))
    sender.send(data)
    assert client.try_recv() == e.EAGAIN
    client.listen(b"", cookie=1, flags=c.MATCH_REPLACE)
    sender.send(data)
    client.recv()
    client.do("MATCH_REMOVE", 0, u64(1))
    assert client.error("MATCH_REMOVE", 0, u64(1)) == e.EBADSLT


def test_who_broadcasts_hears_itself(world: World) -> None:
    client = world.conn()
    client.listen()
    client.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
    assert client.recv().src == client.id


def test_signal_to_one(world: World) -> None:
    sender, receiver = pair(world)
    data = message(receiver.id, bloom(), c.SIGNAL)
    assert sender.send(data) == 0
    assert receiver.try_recv() == e.EAGAIN
    receiver.listen()
    assert sender.send(data) == 0
    assert receiver.recv().src == sender.id


# Monitors


def test_monitor(world: World) -> None:
    client = world.conn()
    client.listen(item(c.ITEM_ID_ADD, u64(c.MATCH_ANY, 0)))
    monitor = world.conn(c.HELLO_MONITOR)
    assert client.try_recv() == e.EAGAIN  # nobody hears of it
    assert client.send(message(monitor.id)) == e.ENXIO
    sender = world.conn()
    sender.memory.fds[5] = FakeFd()
    fds = item(c.ITEM_FDS, struct.pack("<i", 5))
    assert sender.send(message(client.id, fds, cookie=4)) == 0
    kinds = [monitor.recv() for _ in range(2)]
    assert kinds[0].items[0].kind == c.ITEM_ID_ADD
    assert (kinds[1].cookie, kinds[1].dst) == (4, client.id)
    # A monitor that is full stops nobody.
    small = world.open()
    fields = u64(0, 0, 0, 0, c.PAGE)
    small.do("HELLO", c.HELLO_MONITOR, fields)
    for _ in range(20):
        assert sender.send(message(client.id)) == 0


# Notifications


def test_ids(world: World) -> None:
    client = world.conn()
    client.listen(item(c.ITEM_ID_ADD, u64(c.MATCH_ANY, 0)))
    client.listen(item(c.ITEM_ID_REMOVE, u64(c.MATCH_ANY, 0)), cookie=2)
    other = world.conn()
    got = client.recv()
    assert (got.src, got.dst, got.payload_type) == (0, c.DST_BROADCAST, 0)
    assert got.get(c.ITEM_ID_ADD) == u64(other.id, c.HELLO_ACCEPT_FD)
    assert got.get(c.ITEM_TIMESTAMP) is not None
    other.do("BYEBYE")
    assert client.recv().get(c.ITEM_ID_REMOVE) == u64(other.id, c.HELLO_ACCEPT_FD)


def test_lost_and_found_order(world: World) -> None:
    """Names go before the id does, and callers are told before that."""
    watcher = world.conn()
    for cookie, kind in enumerate((c.ITEM_ID_REMOVE,)):
        watcher.listen(item(kind, u64(c.MATCH_ANY, 0)), cookie=cookie)
    any_change = u64(c.MATCH_ANY, 0, c.MATCH_ANY, 0)
    watcher.listen(item(c.ITEM_NAME_REMOVE, any_change), cookie=9)
    service = world.conn()
    service.acquire(b"foo.first")
    service.acquire(b"foo.second")
    watcher.send(message(service.id, cookie=7, **call(world)))
    service.close()
    kinds = [watcher.recv().items[0].kind for _ in range(4)]
    assert kinds == [
        c.ITEM_NAME_REMOVE, c.ITEM_NAME_REMOVE, c.ITEM_REPLY_DEAD, c.ITEM_ID_REMOVE,
    ]  # fmt: skip


def test_nothing_is_left(world: World) -> None:
    clients = [world.conn() for _ in range(4)]
    for client in clients:
        client.listen()
        client.acquire(b"foo.n%d" % client.id, c.NAME_QUEUE)
    for client in clients:
        for other in clients:
            client.send(message(other.id, cookie=other.id, **call(world)))
    activator = world.activator(b"foo.act")
    clients[0].send(message(0, text(c.ITEM_DST_NAME, b"foo.act"), cookie=99, **call(world)))
    for client in [*clients, activator]:
        client.close()
    bus = world.bus
    assert not bus.connections
    assert not bus.listeners
    assert not bus.monitors
    assert not bus.pending
    assert not bus.core.connections
    assert len(bus.core.names) == 0
    assert not bus.policy.entries
    assert bus.replies.n_linked == 0
    assert world.domain.user_connections == {}
    for client in clients:
        conn = client.handle.conn
        assert conn is not None
        assert conn.requests == 0
        assert not conn.awaited
        assert not conn.owed
        assert not conn.queue.entries
