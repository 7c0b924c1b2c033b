"""Names, activators, who may see, talk to and own what, and what is told about whom."""

from __future__ import annotations

import errno as e
import struct

import pytest
from kdbuskit import Client, Item, World, access, bloom, item, items_of, message, text, u64

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.metadata import Caller, Facts, Namespaces

ALLOW, REPLACE, QUEUE = c.NAME_ALLOW, c.NAME_REPLACE, c.NAME_QUEUE
PRIMARY, IN_QUEUE, ACQUIRED = c.NAME_PRIMARY, c.NAME_IN_QUEUE, c.NAME_ACQUIRED
ANY_CHANGE = u64(c.MATCH_ANY, 0, c.MATCH_ANY, 0)
CHANGES = (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE)


def named(name: bytes = b"foo.act") -> bytes:
    return text(c.ITEM_DST_NAME, name)


def held(client: Client, flags: int = 15) -> set[tuple[int, bytes, int]]:
    """(id, name, flags) of all that LIST says."""
    data = client.do("LIST", flags)
    offset, size = struct.unpack_from("<QQ", data, 24)
    found = set()
    listing = client.slice(offset, size)
    at = 0
    while at < size:
        length, number, _ = struct.unpack_from("<3Q", listing, at)
        items = items_of(listing[at : at + length], 24)
        for entry in items or [Item(0, bytes(8))]:
            found.add(
                (number, entry.data[8:].rstrip(b"\0"), struct.unpack_from("<Q", entry.data)[0])
            )
        at += length
    if size:
        client.do("FREE", 0, u64(offset))
    return found


def change(client: Client) -> tuple[int, int, int, int, int, bytes]:
    """(kind, old id, flags, new id, flags, name) of the next notification."""
    entry = client.recv().items[0]
    return (entry.kind, *struct.unpack_from("<4Q", entry.data), entry.data[32:-1])


def watcher(world: World) -> Client:
    client = world.conn()
    for kind in CHANGES:
        client.listen(item(kind, ANY_CHANGE), cookie=kind)
    return client


# Names


def test_owning_and_waiting(world: World) -> None:
    w = watcher(world)
    a, b, third = world.conn(), world.conn(), world.conn()
    assert a.acquire(b"foo.bar", ALLOW | QUEUE) == ALLOW | QUEUE | PRIMARY | ACQUIRED
    assert change(w) == (c.ITEM_NAME_ADD, 0, 0, a.id, ALLOW | QUEUE | PRIMARY, b"foo.bar")
    assert a.acquire(b"foo.bar", ALLOW | QUEUE) == ALLOW | QUEUE | PRIMARY
    assert b.acquire(b"foo.bar", QUEUE) == QUEUE | IN_QUEUE | ACQUIRED
    assert b.acquire(b"foo.bar", QUEUE) == QUEUE | IN_QUEUE
    assert held(w, c.LIST_NAMES | c.LIST_QUEUED) == {
        (a.id, b"foo.bar", ALLOW | QUEUE | PRIMARY), (b.id, b"foo.bar", QUEUE | IN_QUEUE),
    }  # fmt: skip
    # Taken over, the old owner is the next; it did not have to wait behind the others.
    assert third.acquire(b"foo.bar", REPLACE) == PRIMARY | ACQUIRED
    assert change(w) == (
        c.ITEM_NAME_CHANGE, a.id, ALLOW | QUEUE | PRIMARY, third.id, PRIMARY, b"foo.bar",
    )  # fmt: skip
    third.do("NAME_RELEASE", items=text(c.ITEM_NAME, b"foo.bar"))
    assert change(w)[1:4] == (third.id, PRIMARY, a.id)
    a.do("BYEBYE")
    assert change(w) == (
        c.ITEM_NAME_CHANGE, a.id, ALLOW | QUEUE | PRIMARY, b.id, QUEUE | PRIMARY, b"foo.bar",
    )  # fmt: skip
    b.do("NAME_RELEASE", items=text(c.ITEM_NAME, b"foo.bar"))
    assert change(w) == (c.ITEM_NAME_REMOVE, b.id, QUEUE | PRIMARY, 0, 0, b"foo.bar")
    assert w.try_recv() == e.EAGAIN


def test_no_longer_waiting(world: World) -> None:
    a, b = world.conn(), world.conn()
    a.acquire(b"foo.bar")
    b.acquire(b"foo.bar", QUEUE)
    assert b.acquire(b"foo.bar", ALLOW) == ALLOW
    assert held(a, c.LIST_QUEUED) == set()
    assert b.acquire(b"foo.bar") == -e.EEXIST


def test_who_cannot_replace_goes_to_the_end(world: World) -> None:
    """Classic D-Bus would put it first."""
    a, b, third = world.conn(), world.conn(), world.conn()
    a.acquire(b"foo.bar")
    b.acquire(b"foo.bar", QUEUE)
    third.acquire(b"foo.bar", QUEUE | REPLACE)
    a.do("BYEBYE")
    assert (b.id, b"foo.bar", QUEUE | PRIMARY) in held(b)


def test_old_owner_that_does_not_wait(world: World) -> None:
    a, b = world.conn(), world.conn()
    a.acquire(b"foo.bar", ALLOW)
    b.acquire(b"foo.bar", REPLACE)
    b.do("BYEBYE")
    assert held(a, c.LIST_NAMES) == set()


# Activators


def test_activator(world: World) -> None:
    w = watcher(world)
    activator = world.activator(b"foo.act")
    mine = c.NAME_ACTIVATOR | PRIMARY
    assert change(w) == (c.ITEM_NAME_ADD, 0, 0, activator.id, mine, b"foo.act")
    sender, service = world.conn(), world.conn()
    assert sender.send(message(activator.id)) == e.ENXIO
    until = world.domain.monotonic() + 10**10
    assert sender.send(message(0, named(), c.EXPECT_REPLY, 7, until)) == 0
    assert activator.recv(c.RECV_PEEK).cookie == 7

    assert service.acquire(b"foo.act") == PRIMARY | ACQUIRED
    assert change(w) == (c.ITEM_NAME_CHANGE, activator.id, mine, service.id, PRIMARY, b"foo.act")
    assert activator.try_recv() == e.EAGAIN
    assert (activator.id, b"foo.act", c.NAME_ACTIVATOR | IN_QUEUE) in held(w, c.LIST_ACTIVATORS)
    # The answer is owed by the new owner now, before and after it has read the call.
    assert service.send(message(sender.id, timeout=7)) == 0
    assert sender.recv().timeout == 7

    sender.send(message(0, named(), cookie=8))
    sender.send(message(service.id, cookie=9))
    service.do("NAME_RELEASE", items=text(c.ITEM_NAME, b"foo.act"))
    assert change(w) == (c.ITEM_NAME_CHANGE, service.id, PRIMARY, activator.id, mine, b"foo.act")
    # What was sent to the name goes back, what was sent to the connection stays.
    assert [activator.recv().cookie, activator.recv().cookie] == [7, 8]
    assert service.recv().cookie == 9
    activator.close()
    assert change(w) == (c.ITEM_NAME_REMOVE, activator.id, mine, 0, 0, b"foo.act")


def test_messages_go_back_when_the_owner_dies(world: World) -> None:
    activator = world.activator(b"foo.act")
    sender, service = world.conn(), world.conn()
    service.acquire(b"foo.act")
    until = world.domain.monotonic() + 10**10
    sender.send(message(0, named(), c.EXPECT_REPLY, 7, until))
    service.close()
    assert sender.try_recv() == e.EAGAIN
    assert activator.recv().cookie == 7


def test_hand_over_into_a_full_pool(world: World) -> None:
    world.activator(b"foo.act")
    sender = world.conn()
    for _ in range(20):
        assert sender.send(message(0, named())) == 0
    service = world.open().hello(pool=c.PAGE)
    service.acquire(b"foo.act")
    service.recv()
    received = 1
    lost = service.lost
    while service.try_recv() != e.EAGAIN:
        received += 1
    assert received + lost == 20
    assert lost > 0


# Policy


@pytest.mark.parametrize(
    ("rights", "talks", "owns"),
    [
        ([], False, False),
        ([access(c.FOR_WORLD, c.SEE)], False, False),
        ([access(c.FOR_WORLD, c.TALK)], True, False),
        ([access(c.FOR_WORLD, c.OWN)], True, True),
        ([access(c.FOR_USER, c.TALK, 1000)], True, False),
        ([access(c.FOR_USER, c.OWN, 1001)], False, False),
        ([access(c.FOR_GROUP, c.TALK, 1000)], True, False),
        ([access(c.FOR_GROUP, c.OWN, 44)], True, True),
        ([access(c.FOR_GROUP, c.OWN, 45)], False, False),
        ([access(c.FOR_WORLD, c.TALK), access(c.FOR_USER, c.OWN, 1000)], True, True),
    ],
)
@pytest.mark.parametrize("pattern", [b"foo.bar", b"foo.*"])
def test_rights(world: World, rights: list[bytes], talks: bool, owns: bool, pattern: bytes) -> None:
    service = world.conn()
    service.acquire(b"foo.bar")
    world.holder(pattern, *rights)
    stranger = world.conn(uid=1000, groups=(44,))
    assert stranger.send(message(0, named(b"foo.bar"))) == (0 if talks else e.EPERM)
    assert stranger.send(message(service.id)) == (0 if talks else e.EPERM)
    assert stranger.acquire(b"foo.bar") == -(e.EEXIST if owns else e.EPERM)
    # One level, and nothing beside it.
    assert stranger.acquire(b"foo.bar.baz") == -e.EPERM
    assert stranger.acquire(b"bar.bar") == -e.EPERM


def test_an_exact_entry_beats_a_pattern(world: World) -> None:
    world.holder(b"foo.*", access(c.FOR_WORLD, c.OWN))
    world.holder(b"foo.bar", access(c.FOR_WORLD, c.SEE))
    assert world.conn(uid=1000).acquire(b"foo.bar") == -e.EPERM
    assert world.conn(uid=1000).acquire(b"foo.baz") > 0


def test_policy_goes_with_its_holder(world: World) -> None:
    holder = world.holder(b"foo.bar", access(c.FOR_WORLD, c.OWN))
    stranger = world.conn(uid=1000)
    assert stranger.acquire(b"foo.bar") > 0
    stranger.do("NAME_RELEASE", items=text(c.ITEM_NAME, b"foo.bar"))
    holder.do("UPDATE", items=text(c.ITEM_NAME, b"foo.bar") + access(c.FOR_WORLD, c.TALK))
    assert stranger.acquire(b"foo.bar") == -e.EPERM
    # What cannot be set leaves what was.
    assert holder.error("UPDATE", items=text(c.ITEM_NAME, b"foo.bar") + access(9, 9)) == e.EINVAL
    service = world.conn()
    service.acquire(b"foo.bar")
    assert stranger.send(message(service.id)) == 0
    holder.close()
    assert stranger.send(message(service.id)) == e.EPERM


def test_same_user_and_privileged(world: World) -> None:
    service = world.conn(uid=1000)
    assert world.conn(uid=1000).send(message(service.id)) == 0
    assert world.conn(uid=1001).send(message(service.id)) == e.EPERM
    assert world.conn(uid=1001, privileged=True).send(message(service.id)) == 0
    assert world.conn(uid=1001, privileged=True).acquire(b"foo.bar") > 0


def test_broadcasts_need_the_right_to_talk(world: World) -> None:
    service = world.conn()
    service.acquire(b"foo.bar")
    stranger = world.conn(uid=1000)
    stranger.listen()
    data = message(c.DST_BROADCAST, bloom(), c.SIGNAL)
    service.send(data)
    assert stranger.try_recv() == e.EAGAIN
    world.holder(b"foo.bar", access(c.FOR_WORLD, c.TALK))
    while stranger.try_recv() != e.EAGAIN:
        pass
    service.send(data)
    assert stranger.recv().src == service.id


# Custom endpoints


def test_custom_endpoint_hides(world: World) -> None:
    maker, endpoint = world.endpoint()
    inside = world.at(endpoint).hello()
    for kind in CHANGES:
        inside.listen(item(kind, ANY_CHANGE), cookie=kind)
    service = world.conn()
    service.acquire(b"foo.bar")
    assert inside.try_recv() == e.EAGAIN
    by_name = inside.error("CONN_INFO", items=text(c.ITEM_NAME, b"foo.bar"))
    assert by_name == inside.error("CONN_INFO", items=text(c.ITEM_NAME, b"no.such")) == e.ESRCH
    by_id = inside.error("CONN_INFO", 0, u64(service.id))
    assert by_id == inside.error("CONN_INFO", 0, u64(1 << 50)) == e.ENXIO
    assert held(inside, c.LIST_NAMES) == set()
    assert inside.send(message(service.id)) == e.EPERM
    assert inside.acquire(b"foo.mine") == -e.EPERM

    maker.do("ENDPOINT_UPDATE", items=text(c.ITEM_NAME, b"foo.bar") + access(c.FOR_WORLD, c.SEE))
    assert held(inside, c.LIST_NAMES) == {(service.id, b"foo.bar", PRIMARY)}
    inside.do("CONN_INFO", 0, u64(service.id))
    assert inside.send(message(service.id)) == e.EPERM
    service.do("NAME_RELEASE", items=text(c.ITEM_NAME, b"foo.bar"))
    assert inside.recv().items[0].kind == c.ITEM_NAME_REMOVE

    service.acquire(b"foo.bar")
    maker.do("ENDPOINT_UPDATE", items=text(c.ITEM_NAME, b"foo.*") + access(c.FOR_WORLD, c.OWN))
    assert inside.send(message(service.id)) == 0
    # The bus's policy counts as well: through a custom endpoint nobody is an owner.
    assert inside.acquire(b"foo.mine") == -e.EPERM
    world.holder(b"foo.mine", access(c.FOR_WORLD, c.OWN))
    assert inside.acquire(b"foo.mine") > 0


def test_custom_endpoint_pays_for_itself(world: World) -> None:
    _, endpoint = world.endpoint()
    inside = world.at(endpoint).hello().handle.conn
    outside = world.conn().handle.conn
    assert inside is not None
    assert outside is not None
    assert inside.user is not outside.user
    other = world.at(endpoint, uid=1000).hello().handle.conn
    assert other is not None
    assert other.user is inside.user


# Metadata


class Elsewhere(Namespaces):
    """Where uid 1000 is 0, and nobody's pid can be seen."""

    def uid(self, uid: int) -> int:
        return 0 if uid == 1000 else 65534

    gid = uid

    def pids(self, facts: Facts) -> tuple[int, int, int]:
        return (0, 0, 0)

    def sees(self, facts: Facts) -> bool:
        return False


def with_facts(client: Client, namespaces: Namespaces | None = None) -> Client:
    facts = Facts()
    uid = client.creds.uid
    facts.uids = facts.gids = (uid,) * 4
    facts.pids = (10, 11, 1)
    facts.groups = (5, 6)
    facts.tid_comm, facts.pid_comm = b"thread", b"process"
    facts.exe, facts.cmdline, facts.cgroup = b"/bin/x", b"x", b"/slice"
    facts.caps = (1, 2, 3, 4)
    facts.audit = (7, uid)
    client.caller = Caller(client.creds, facts, namespaces)
    return client


def test_metadata(core: World) -> None:
    sender = with_facts(core.open()).hello(items=text(c.ITEM_DESCRIPTION, b"me"))
    receiver = core.conn()
    sender.acquire(b"foo.bar", ALLOW)
    sender.send(message(receiver.id))
    got = receiver.recv()
    assert got.get(c.ITEM_CREDS) == u64(*[0] * 8)
    assert got.get(c.ITEM_PIDS) == u64(10, 11, 1)
    assert got.get(c.ITEM_AUXGROUPS) == u64(5, 6)
    assert got.get(c.ITEM_TID_COMM) == b"thread\0"
    assert got.get(c.ITEM_PID_COMM) == b"process\0"
    assert got.get(c.ITEM_EXE) == b"/bin/x\0"
    assert got.get(c.ITEM_CMDLINE) == b"x\0"
    assert got.get(c.ITEM_CGROUP) == b"/slice\0"
    assert got.get(c.ITEM_CAPS) == struct.pack("<I4Q", 40, 1, 2, 3, 4)
    assert got.get(c.ITEM_AUDIT) == struct.pack("<2I", 7, 0)
    assert got.get(c.ITEM_OWNED_NAME) == u64(ALLOW | PRIMARY) + b"foo.bar\0"
    assert got.get(c.ITEM_DESCRIPTION) == b"me\0"
    assert len(got.get(c.ITEM_TIMESTAMP) or b"") == 24


@pytest.mark.parametrize("flag", [1 << bit for bit in range(14)])
def test_only_what_was_asked_for(world: World, flag: int) -> None:
    sender = with_facts(world.open()).hello(items=text(c.ITEM_DESCRIPTION, b"me"))
    sender.acquire(b"foo.bar")
    receiver = world.conn()
    receiver.do("UPDATE", items=item(c.ITEM_ATTACH_FLAGS_RECV, u64(flag)))
    sender.send(message(receiver.id))
    kind = 0x1000 + flag.bit_length() - 1
    assert receiver.recv().kinds() == ([kind] if kind != c.ITEM_SECLABEL else [])


def test_what_a_sender_can_keep_to_itself(core: World) -> None:
    """Only from those who could not look it up themselves."""
    near, far = core.conn(), with_facts(core.open(), Elsewhere()).hello()
    sender = with_facts(core.open()).hello()
    sender.do("UPDATE", items=item(c.ITEM_ATTACH_FLAGS_SEND, u64(0)))
    sender.send(message(near.id))
    sender.send(message(far.id))
    assert near.recv().get(c.ITEM_CMDLINE) == b"x\0"
    got = far.recv()
    assert got.get(c.ITEM_CMDLINE) is None
    assert got.get(c.ITEM_CREDS) is not None


def test_translation(world: World) -> None:
    receiver = with_facts(world.open(uid=1000), Elsewhere()).hello()
    for uid, seen in ((1000, 0), (7, 65534)):
        sender = with_facts(world.open(uid=uid, privileged=True)).hello()
        sender.send(message(receiver.id))
        got = receiver.recv()
        assert got.get(c.ITEM_CREDS) == u64(*[seen] * 8)
        assert got.get(c.ITEM_PIDS) == u64(0, 0, 0)


def info(client: Client, name: str = "CONN_INFO", number: int = 0) -> list[Item]:
    data = client.do(name, 0, u64(number, c.ATTACH_ALL))
    offset, size = struct.unpack_from("<QQ", data, 40)
    return items_of(client.slice(offset, size), 24)


def test_conn_info_is_of_hello(core: World) -> None:
    sender = with_facts(core.open()).hello()
    sender.caller = Caller(sender.creds, Facts())
    found = {entry.kind: entry.data for entry in info(core.conn(), number=sender.id)}
    assert found[c.ITEM_PIDS] == u64(10, 11, 1)
    assert c.ITEM_TIMESTAMP not in found


def test_conn_info_of_an_impostor(world: World) -> None:
    client = with_facts(world.open(privileged=True))
    fake = item(c.ITEM_CREDS, u64(*range(1, 9))) + text(c.ITEM_SECLABEL, b"label")
    client.hello(items=fake)
    found = {entry.kind: entry.data for entry in info(world.conn(), number=client.id)}
    assert found == {c.ITEM_CREDS: u64(*range(1, 9)), c.ITEM_SECLABEL: b"label\0"}
    conn = client.handle.conn
    assert conn is not None
    assert conn.user.uid == 1
    receiver = world.conn()
    client.send(message(receiver.id))
    assert receiver.recv().kinds() == [c.ITEM_TIMESTAMP]


def test_creator_info(world: World) -> None:
    control = world.control_node()
    with_facts(control)
    attach = item(c.ITEM_ATTACH_FLAGS_SEND, u64(c.ATTACH_CREDS | c.ATTACH_NAMES))
    bloom_size = item(c.ITEM_BLOOM_PARAMETER, u64(8, 1))
    control.do("BUS_MAKE", 1, items=text(c.ITEM_MAKE_NAME, b"0-told") + bloom_size + attach)
    bus = world.domain.buses[b"0-told"]
    client = world.at(bus.default).hello()
    found = {entry.kind: entry.data for entry in info(client, "BUS_CREATOR_INFO")}
    assert found == {c.ITEM_MAKE_NAME: b"0-told\0", c.ITEM_CREDS: u64(*[0] * 8)}
    assert (bus.mode, bus.default.mode) == (0o550, 0o660)


def test_list(world: World) -> None:
    a = world.conn()
    a.acquire(b"foo.bar")
    activator = world.activator(b"foo.act")
    holder = world.holder(b"foo.hold")
    world.conn(c.HELLO_MONITOR)
    assert held(a, c.LIST_UNIQUE) == {(who.id, b"", 0) for who in (a, activator, holder)}
    assert held(a, c.LIST_NAMES) == {(a.id, b"foo.bar", PRIMARY)}
    assert held(a, 15) == {
        (a.id, b"foo.bar", PRIMARY), (activator.id, b"foo.act", c.NAME_ACTIVATOR | PRIMARY),
        (holder.id, b"", 0),
    }  # fmt: skip
    assert held(a, 0) == set()


# Two worlds on one bus; the rest of it is in worlds/


def test_foreign_connections(world: World) -> None:
    """A connection of another front on the same bus is listed and named."""
    bus = world.bus
    other = bus.core.connect(0)
    w = watcher(world)
    bus.core.hello(other)
    bus.core.announce(other)
    bus.core.names.request(other, b"foo.classic", 0)
    bus.flush()  # the other front's round is over
    assert other.id == w.id + 1
    assert world.conn().id == other.id + 1
    # What it asked with is not known yet when the registry reports it.
    assert change(w)[3:] == (other.id, PRIMARY, b"foo.classic")
    assert (other.id, b"foo.classic", QUEUE | PRIMARY) in held(w)
    assert w.send(message(other.id)) == e.ENXIO
    assert w.send(message(0, named(b"foo.classic"))) == e.ESRCH
