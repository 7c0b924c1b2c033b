"""What holds whatever clients do: pools stay whole, books balance, bytes never break the bus."""

from __future__ import annotations

import errno as e
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kdbuskit import Client, World, access, bloom, command, item, message, text, u64

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.pool import PlainMemory, Pool
from jitney.kdbus import uapi

SIZE = 4096


def whole(pool: Pool) -> None:
    """Slices cover the pool, no two free ones are neighbours, and the index is right."""
    parts = sorted([*pool.busy.values(), *pool.unused.values()], key=lambda part: part.offset)
    at = 0
    before = None
    for part in parts:
        assert part.offset == at
        assert part.previous is before
        assert before is None or before.following is part
        assert not (part.free and before is not None and before.free)
        assert part.free or part.by_bus or part.by_owner
        at += part.size
        before = part
    assert at == pool.size
    assert pool.sizes == sorted((part.size, part.offset) for part in pool.holes.values())
    for part in pool.unused.values():
        assert part.free
        assert (part is pool.top) == (part.following is None)
    assert pool.accounted == sum(part.size for part in pool.busy.values() if part.accounted)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 1500)), max_size=60))
def test_pool(steps: list[tuple[int, int]]) -> None:
    pool = Pool(SIZE, PlainMemory(SIZE))
    held: list[Any] = []
    published: dict[int, int] = {}
    for step, number in steps:
        if step < 3 or not held:
            try:
                part = pool.alloc(number, step == 0)
            except KdbusError:
                assert all(part.size < number for part in pool.unused.values())
                continue
            data = bytes([number % 251]) * part.size
            pool.memory.write(part.offset, [data])
            held.append((part, data))
        elif step == 3:
            part, _ = held[number % len(held)]
            offset, size = pool.publish(part)
            published[offset] = size
        elif step == 4:
            part, data = held.pop(number % len(held))
            # What others wrote meanwhile is not in it.
            assert pool.memory.read(part.offset, part.size) == data
            pool.release(part)
        else:
            offset = number // 8 * 8
            try:
                pool.free(offset)
            except KdbusError:
                assert offset not in published
            else:
                del published[offset]
        whole(pool)
    for part, _ in held:
        pool.release(part)
    for offset in published:
        pool.free(offset)
    assert [(part.offset, part.size) for part in pool.unused.values()] == [(0, SIZE)]


class Walk:
    """Some clients of different users who do anything at all to each other."""

    NAMES = (b"foo.one", b"foo.two", b"foo.act")

    def __init__(self) -> None:
        self.world = World()
        self.now = 1_000_000
        self.world.domain.monotonic = lambda: self.now
        self.world.holder(b"foo.*", access(c.FOR_WORLD, c.OWN))
        self.clients = [self.world.conn(uid=uid) for uid in (0, 0, 1000, 1001)]
        self.open = [*self.clients]

    def step(self, what: int, who: int, whom: int, number: int) -> None:
        client = self.open[who % len(self.open)]
        other = self.open[whom % len(self.open)]
        name = self.NAMES[number % 3]
        if what == 0:
            client.send(message(other.id, self.payload(client, number), cookie=number))
        elif what == 1:
            named = text(c.ITEM_DST_NAME, name)
            until = self.now + number * 10
            flags = c.SEND_SYNC_REPLY if number % 2 else 0
            client.send(message(0, named, c.EXPECT_REPLY, number % 5, until), flags)
        elif what == 2:
            client.send(message(other.id, timeout=number % 5 + 1))
        elif what == 3:
            got = client.try_recv((0, 0, c.RECV_PEEK, c.RECV_DROP, c.RECV_USE_PRIORITY)[number % 5])
            if not isinstance(got, int) and got.flags & c.EXPECT_REPLY:
                client.send(message(got.src, timeout=got.cookie or 99))
        elif what == 4:
            client.acquire(name, number % 8)
        elif what == 5:
            client.ioctl("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, name)))
        elif what == 6:
            client.ioctl("MATCH_ADD", command("MATCH_ADD", number % 2, u64(number % 3)))
        elif what == 7:
            client.send(message(c.DST_BROADCAST, bloom(), c.SIGNAL))
        elif what == 8:
            self.now += number
            self.world.domain.expire()
        elif what == 9 and len(self.open) > 2:
            self.open.remove(client)
            client.close()
        elif what == 10 and len(self.open) < 8:
            kind = number % 4
            if kind == 0:
                fresh = self.world.conn(c.HELLO_MONITOR)
            elif kind == 1 and self.world.bus.core.names.get(b"foo.act") is None:
                fresh = self.world.activator(b"foo.act")
            else:
                fresh = self.world.conn(uid=1000 * (number % 2))
            self.open.append(fresh)
            self.clients.append(fresh)

    def payload(self, client: Client, number: int) -> bytes:
        data = bytes([number % 256]) * (number % 9000 + 1)
        return item(c.ITEM_PAYLOAD_VEC, u64(len(data), client.memory.put(data)))

    def check(self) -> None:
        for client in self.open:
            conn = client.handle.conn
            assert conn is not None
            whole(conn.pool)
            waiting = list(conn.queue.entries.values())
            assert conn.pool.accounted == sum(entry.size for entry in waiting)
            assert sum(quota.messages for quota in conn.quota.values()) == len(waiting)
            assert sum(quota.memory for quota in conn.quota.values()) == conn.pool.accounted
            linked = [reply for replies in conn.awaited.values() for reply in replies]
            for reply in linked:
                assert reply.caller is conn
                assert reply in reply.callee.owed
                assert reply.callee.active
            assert conn.requests >= len(linked)


STEP = st.tuples(st.integers(0, 10), st.integers(0, 7), st.integers(0, 7), st.integers(0, 40_000))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=120))
def test_anything_at_all(steps: list[tuple[int, int, int, int]]) -> None:
    walk = Walk()
    for step in steps:
        walk.step(*step)
        walk.check()
    for client in walk.open:
        client.close()
    bus = walk.world.bus
    assert bus.replies.n_linked == 0
    assert [conn.holder for conn in bus.connections.values()] == [True]
    assert len(bus.core.names) == 0
    for client in walk.clients:
        conn = client.handle.conn
        assert conn is not None
        assert conn.requests == 0
    walk.world.close()


NAMES = [form.name for form in uapi.FORMS]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 15),
    st.lists(
        st.tuples(
            st.sampled_from(sorted({kind for form in uapi.FORMS for kind in form.items})),
            st.binary(max_size=80),
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
    st.integers(0, 3),
)
def test_any_bytes(
    name: str, flags: int, items: list[tuple[int, bytes]], tail: bytes, who: int
) -> None:
    """Every command answers with an errno or does something; it never breaks."""
    world = World()
    client = [
        world.conn,
        world.open,
        world.control_node,
        lambda: world.conn(c.HELLO_MONITOR),
    ][who]()
    body = b"".join(item(kind, data) for kind, data in items)
    data = command(name, flags, items=body)
    size = len(data)
    changed = data[:16] + data[16 : size - len(tail)] + tail if len(tail) < size - 16 else data
    number, _ = client.ioctl(name, changed)
    assert number == 0 or number in e.errorcode
    assert world.conn().error("LIST", 15) == 0
    world.close()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 7),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(uapi.MESSAGE_FORM.items)), st.binary(min_size=0, max_size=80)
        ),
        max_size=4,
    ),
    st.sampled_from([0, 1, 3, c.DST_BROADCAST]),
    st.integers(0, 2**64 - 1),
)
def test_any_message(flags: int, items: list[tuple[int, bytes]], dst: int, timeout: int) -> None:
    world = World()
    client = world.conn()
    body = b"".join(item(kind, data) for kind, data in items)
    number = client.send(message(dst, body, flags, timeout=timeout))
    assert number in (0, -1) or number in e.errorcode
    assert world.conn().send(message(client.id)) == 0
    world.close()
