"""Names, ids, credentials and starting of services across the worlds.

Invariant: each change of an owner is told once in each world, in the same order, with the same ids.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

import corebus
import pytest
from corebus import received
from kdbuskit import Client, Item, access, items_of, text, u64
from worldskit import Shared, answer, call, hear, notices, reply_to, tell, unique

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.metadata import Caller, Facts
from jitney.broker.message import NO_AUTO_START
from jitney.broker.names import ALLOW_REPLACEMENT, DO_NOT_QUEUE, EXISTS, IN_QUEUE, REPLACE_EXISTING
from jitney.compat import wire
from jitney.compat.errors import ACCESS_DENIED, NO_REPLY, SERVICE_UNKNOWN

NAME = b"com.example.Name"
OTHER = b"com.example.Other"
KEEP = 0xFFFFFFFF


@pytest.fixture
def shared() -> Shared:
    return Shared()


def watcher(shared: Shared) -> Client:
    client = shared.kdbus()
    client.listen()
    shared.front.take()
    return client


def changes_of(client: Client) -> list[tuple[bytes, int, int]]:
    """What a kdbus client was told, as a classic one would be."""
    out = []
    for told in notices(client):
        if told[0] == c.ITEM_ID_ADD:
            out.append((b":1.%d" % told[1], 0, told[1]))
        elif told[0] == c.ITEM_ID_REMOVE:
            out.append((b":1.%d" % told[1], told[1], 0))
        elif told[0] in (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE):
            out.append(told[1:])
    return out


def test_ids_are_unique_names(shared: Shared) -> None:
    peers = [shared.classic(), shared.kdbus(), shared.classic(), shared.kdbus()]
    # The bus itself took the first.
    assert [peer.id for peer in peers] == [2, 3, 4, 5]
    for peer in peers:
        assert shared.core.lookup(b":1.%d" % peer.id).id == peer.id
        assert shared.core.connections[peer.id].unique_name == unique(peer)
    for number in (b"0", b"1", b"02", b"6"):
        assert shared.core.lookup(b":1." + number) is None
    # Monitors and other buses of the domain take from the same counter.
    shared.kdbus(c.HELLO_MONITOR)
    assert shared.classic().id == 7
    assert shared.domain.next_id() == 8
    assert shared.classic().id == 9
    assert shared.kdbus().id == 10


def test_both_are_told_the_same(shared: Shared) -> None:
    w = watcher(shared)
    classic, client = shared.classic(), shared.kdbus()
    shared.core.request_name(classic, NAME, ALLOW_REPLACEMENT)
    client.acquire(NAME, c.NAME_REPLACE | c.NAME_ALLOW | c.NAME_QUEUE)
    shared.core.request_name(classic, NAME, REPLACE_EXISTING)
    shared.core.release_name(classic, NAME)
    client.handle.close()
    shared.core.disconnect(classic)
    told = shared.front.changes()
    assert told == [
        (unique(classic), 0, classic.id),
        (unique(client), 0, client.id),
        (NAME, 0, classic.id),
        (NAME, classic.id, client.id),
        (NAME, client.id, classic.id),
        (NAME, classic.id, client.id),
        (NAME, client.id, 0),
        (unique(client), client.id, 0),
        (unique(classic), classic.id, 0),
    ]
    assert changes_of(w) == told


def test_queue_across(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    client.acquire(NAME, c.NAME_QUEUE)
    assert shared.core.request_name(classic, NAME, DO_NOT_QUEUE) == EXISTS
    assert shared.core.request_name(classic, NAME, REPLACE_EXISTING) == IN_QUEUE
    w = watcher(shared)
    assert call(w, NAME) == 0
    assert client.recv().src == w.id
    client.do("NAME_RELEASE", items=text(c.ITEM_NAME, NAME))
    assert changes_of(w) == [(NAME, client.id, classic.id)]
    assert call(w, NAME) == 0
    assert len(received(classic)) == 1
    assert client.acquire(NAME) == -errno.EEXIST
    assert client.acquire(NAME, c.NAME_QUEUE) & c.NAME_IN_QUEUE
    shared.core.disconnect(classic)
    assert changes_of(w)[0] == (NAME, classic.id, client.id)


def test_names_of_a_classic_owner_are_listed(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    shared.core.request_name(classic, NAME, 0)
    watching = shared.classic()
    shared.core.become_monitor(watching, [])
    data = client.do("LIST", c.LIST_UNIQUE | c.LIST_NAMES)
    offset, size = struct.unpack_from("<2Q", data, 24)
    entries = []
    at = offset
    while at < offset + size:
        length, number = struct.unpack_from("<2Q", client.slice(at, 16))
        items = items_of(client.slice(at, length), 24)
        entries.append((number, [item.data[8:-1] for item in items]))
        at += length
    assert entries == [(classic.id, [NAME]), (client.id, [])]


def info(client: Client, number: int = 0, name: bytes = b"") -> list[Item]:
    items = text(c.ITEM_NAME, name) if name else b""
    data = client.do("CONN_INFO", 0, u64(number, c.ATTACH_ALL), items)
    offset, size = struct.unpack_from("<2Q", data, 40)
    return items_of(client.slice(offset, size), 24)


def test_conn_info_of_a_classic_connection(shared: Shared) -> None:
    classic, client = shared.classic(1000), shared.kdbus()
    shared.core.request_name(classic, NAME, 0)
    for items in (info(client, classic.id), info(client, 0, NAME)):
        found = {item.kind: item.data for item in items}
        assert found == {
            c.ITEM_CREDS: u64(KEEP, 1000, KEEP, KEEP, KEEP, 1000, KEEP, KEEP),
            c.ITEM_PIDS: u64(77, 0, 0),
            c.ITEM_AUXGROUPS: u64(1000, 4242),
            c.ITEM_SECLABEL: b"a_label\0",
            c.ITEM_OWNED_NAME: found[c.ITEM_OWNED_NAME],
        }
        assert found[c.ITEM_OWNED_NAME][8:] == NAME + b"\0"
    assert client.error("CONN_INFO", 0, u64(99, 0)) == errno.ENXIO


def test_metadata_of_a_classic_sender(shared: Shared) -> None:
    classic, client = shared.classic(1000), shared.kdbus(uid=1000)
    tell(shared, classic, corebus.call(unique(client), 2, 1))
    got = client.recv()
    assert got.get(c.ITEM_CREDS) == u64(KEEP, 1000, KEEP, KEEP, KEEP, 1000, KEEP, KEEP)
    assert got.get(c.ITEM_PIDS) == u64(77, 0, 0)
    assert got.get(c.ITEM_SECLABEL) == b"a_label\0"
    assert got.get(c.ITEM_TIMESTAMP) is not None


def test_what_the_classic_side_knows_of_kdbus(shared: Shared) -> None:
    client = shared.open(uid=1000)
    facts = Facts()
    facts.uids, facts.gids = (1000,) * 4, (1000,) * 4
    facts.pids, facts.groups, facts.seclabel = (10, 11, 1), (5, 6), b"here"
    client.caller = Caller(client.creds, facts)
    client.hello()
    core = shared.core.connections[client.id]
    assert core.user.uid == 1000
    assert (core.creds.uid, core.creds.gid, core.creds.pid) == (1000, 1000, 10)
    assert (core.creds.groups(), core.creds.label()) == ([5, 6, 1000], b"here")
    assert core.accepts_fds
    assert not shared.core.connections[shared.kdbus(0).id].accepts_fds


# Services that are started


@pytest.mark.parametrize("threads", [False, True])
def test_classic_service_is_started_for_kdbus(threads: bool) -> None:
    later: list[Any] = []
    shared = Shared(later if threads else None)
    client = shared.kdbus()
    shared.front.starts.add(NAME)
    assert call(client, OTHER) == errno.ESRCH
    assert call(client, NAME, flags=NO_AUTO_START) == errno.ESRCH
    assert call(client, NAME, 5) == 0
    while later:
        later.pop(0)()
    service, forger = shared.classic(), shared.classic()
    shared.core.request_name(service, NAME, 0)
    (msg,) = received(service)
    forged = corebus.message(
        wire.RETURN, 3, flags=1, destination=unique(client), reply_serial=msg.serial
    )
    tell(shared, forger, forged)
    tell(shared, service, reply_to(msg))
    assert hear(client).sender == unique(service)
    assert notices(client) == []
    assert shared.bus.replies.n_linked == len(shared.core.replies) == 0


def test_start_that_fails(shared: Shared) -> None:
    later: list[Any] = []
    shared = Shared(later)
    client = shared.kdbus()
    shared.front.starts.add(NAME)
    assert call(client, NAME, 5) == 0
    assert call(client, NAME, 6, sync=True) == -1
    for job in later:
        job()
    ((conn, first, _), (_, second, _)) = shared.front.kept
    for msg in (first, second):
        shared.front.error(conn, msg.serial, "org.freedesktop.DBus.Error.Spawn.Failed", "no")
    assert notices(client) == [(c.ITEM_REPLY_DEAD, 5)]
    assert client.answers == [errno.EPIPE]
    assert shared.bus.replies.n_linked == 0
    assert not shared.worlds.calls.of


def test_start_that_is_refused_later() -> None:
    later: list[Any] = []
    shared = Shared(later)
    client = shared.kdbus()
    shared.front.starts.add(NAME)
    assert call(client, NAME, 5) == 0
    shared.front.starts.clear()
    later[-1]()
    assert notices(client) == [(c.ITEM_REPLY_DEAD, 5)]


def test_caller_is_gone_before_the_start() -> None:
    later: list[Any] = []
    shared = Shared(later)
    client = shared.kdbus()
    shared.front.starts.add(NAME)
    assert call(client, NAME, 5) == 0
    client.handle.close()
    later[-1]()
    assert shared.front.kept == []


def test_started_service_is_one_of_kdbus(shared: Shared) -> None:
    client = shared.kdbus()
    shared.front.starts.add(NAME)
    wide = (1 << 33) + 5
    assert call(client, NAME, wide, sync=True) == -1
    service = shared.kdbus()
    service.acquire(NAME)
    said = hear(service)
    assert (said.sender, said.cookie) == (unique(client), wide)
    assert answer(service, unique(client), wide, signature=b"s", values=["x"]) == 0
    assert client.answers == [0]
    assert shared.bus.replies.n_linked == len(shared.core.replies) == 0
    assert not shared.worlds.calls.of


def test_activator_of_kdbus_takes_classic_calls(shared: Shared) -> None:
    activator, classic = shared.activator(NAME), shared.classic()
    tell(shared, classic, corebus.call(NAME, 5))
    tell(shared, classic, corebus.call(NAME, 6, 1))
    tell(shared, classic, corebus.call(NAME, 7))
    service = shared.kdbus()
    service.acquire(NAME)
    assert [hear(service).cookie for _ in range(3)] == [5, 6, 7]
    assert answer(service, unique(classic), 7) == 0
    assert [msg.reply_serial for msg in received(classic)] == [7]
    assert len(shared.core.replies) == 1
    activator.handle.close()
    assert received(classic) == []
    assert answer(service, unique(classic), 5) == 0
    assert [msg.sender for msg in received(classic)] == [unique(service)]
    assert shared.bus.replies.n_linked == len(shared.core.replies) == 0


def test_activator_of_kdbus_goes_without_a_service(shared: Shared) -> None:
    activator, classic = shared.activator(NAME), shared.classic()
    tell(shared, classic, corebus.call(NAME, 5))
    activator.handle.close()
    (msg,) = received(classic)
    assert ((msg.error_name or b"").decode(), msg.reply_serial) == (NO_REPLY, 5)
    tell(shared, classic, corebus.call(NAME, 6))
    (msg,) = received(classic)
    assert ((msg.error_name or b"").decode(), msg.reply_serial) == (SERVICE_UNKNOWN, 6)


def test_classic_service_takes_over_from_an_activator(shared: Shared) -> None:
    shared.activator(NAME)
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(NAME, 5))
    assert call(client, NAME, 6) == 0
    assert call(client, NAME, 7, sync=True) == -1
    service = shared.classic()
    shared.core.request_name(service, NAME, 0)
    msgs = received(service)
    assert [(msg.sender, msg.serial) for msg in msgs] == [
        (unique(classic), 5), (unique(client), 6), (unique(client), 7),
    ]  # fmt: skip
    for msg in msgs:
        tell(shared, service, reply_to(msg))
    assert [msg.reply_serial for msg in received(classic)] == [5]
    assert client.answers == [0]
    assert hear(client).reply_cookie == 6
    assert shared.bus.replies.n_linked == len(shared.core.replies) == 0


def test_policy_holders_take_nothing(shared: Shared) -> None:
    holder = shared.kdbus(
        c.HELLO_POLICY_HOLDER | 1, text(c.ITEM_NAME, NAME) + access(c.FOR_WORLD, c.TALK)
    )
    classic = shared.classic(1000)
    tell(shared, classic, corebus.call(unique(holder), 5))
    assert [msg.error_name for msg in received(classic)] == [SERVICE_UNKNOWN.encode()]
    assert len(shared.core.replies) == 0
    # What it holds counts for classic senders.
    client = shared.kdbus(uid=1001)
    tell(shared, classic, corebus.call(unique(client), 6))
    assert [msg.error_name for msg in received(classic)] == [ACCESS_DENIED.encode()]
    owner = shared.kdbus()
    owner.acquire(NAME)
    tell(shared, classic, corebus.call(NAME, 7))
    assert hear(owner).sender == unique(classic)
