# ruff: noqa: E501 - tables are read in columns
"""Every command of kdbus with its flags, items and errnos, from one table.

Where kdbus's manual pages and its source say different things, the source is what programs met:
a missing item is EINVAL (the manual: EBADMSG), a second one of a kind EINVAL (EEXIST), a pool of no
size EINVAL (EFAULT), a full pool of the asker EXFULL (ENOBUFS), and an ended connection ECONNRESET.
"""

from __future__ import annotations

import errno as e
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from kdbuskit import (
    POOL,
    Client,
    FakeFd,
    World,
    access,
    bloom,
    command,
    item,
    message,
    text,
    u64,
)

from jitney.broker.kdbus import constants as c
from jitney.kdbus import uapi

NAME, MAKE, PARAM = c.ITEM_NAME, c.ITEM_MAKE_NAME, c.ITEM_BLOOM_PARAMETER
ALL = c.ATTACH_ALL
BAD_FLAG = 1 << 40


def control(w: World) -> Client:
    return w.control_node()


def other_control(w: World) -> Client:
    return w.control_node(uid=1000)


def door(w: World) -> Client:
    return w.open()


def stranger(w: World) -> Client:
    return w.open(uid=1000)


def conn(w: World) -> Client:
    return w.conn()


def stranger_conn(w: World) -> Client:
    return w.conn(uid=1000)


def monitor(w: World) -> Client:
    return w.conn(c.HELLO_MONITOR)


def activator(w: World) -> Client:
    return w.activator(b"foo.act", access(c.FOR_WORLD, c.TALK))


def holder(w: World) -> Client:
    return w.holder(b"foo.hold", access(c.FOR_WORLD, c.TALK))


def custom(w: World) -> Client:
    return w.at(w.endpoint()[1])


def custom_conn(w: World) -> Client:
    return custom(w).hello()


def ep_owner(w: World) -> Client:
    return w.endpoint()[0]


def ended(w: World) -> Client:
    client = w.conn()
    client.do("BYEBYE")
    return client


def owner(w: World) -> Client:
    client = w.conn()
    assert client.acquire(b"foo.taken") > 0
    return w.conn()


def busy(w: World) -> Client:
    client = w.conn()
    assert w.conn().send(message(client.id)) == 0
    return client


GOOD = {MAKE: text(MAKE, b"0-more"), PARAM: item(PARAM, u64(64, 1))}


def bus(name: bytes = b"0-more", size: int = 64, hashes: int = 1, more: bytes = b"") -> bytes:
    return text(MAKE, name) + item(PARAM, u64(size, hashes)) + more


def hello(pool: int = POOL, send: int = ALL, recv: int = ALL) -> bytes:
    return u64(send, recv, 0, 0, pool)


def info(number: int = 0, attach: int = ALL) -> bytes:
    return u64(number, attach)


def name_change(old: int = c.MATCH_ANY, new: int = c.MATCH_ANY, name: bytes = b"") -> bytes:
    return u64(old, 0, new, 0) + name


Case = tuple[str, Callable[[World], Client], str, int, bytes, bytes, int]

TABLE: list[Case] = [
    # what, who, command, flags, fields, items, errno
    ("a bus", control, "BUS_MAKE", 3, b"", bus(), 0),
    ("with metadata", control, "BUS_MAKE", 0, b"",
     bus(more=item(c.ITEM_ATTACH_FLAGS_SEND, u64(c.NONE64))), 0),
    ("bad flag", control, "BUS_MAKE", 4, b"", bus(), e.EINVAL),
    ("no name", control, "BUS_MAKE", 0, b"", GOOD[PARAM], e.EINVAL),
    ("no bloom", control, "BUS_MAKE", 0, b"", GOOD[MAKE], e.EINVAL),
    ("two names", control, "BUS_MAKE", 0, b"", bus() + GOOD[MAKE], e.EINVAL),
    ("foreign item", control, "BUS_MAKE", 0, b"", bus() + text(NAME, b"a.b"), e.EINVAL),
    ("no uid", control, "BUS_MAKE", 0, b"", bus(b"more"), e.EINVAL),
    ("another's uid", control, "BUS_MAKE", 0, b"", bus(b"7-more"), e.EINVAL),
    ("own uid", other_control, "BUS_MAKE", 0, b"", bus(b"1000-more"), 0),
    ("bad character", control, "BUS_MAKE", 0, b"", bus(b"0-mo@re"), e.EINVAL),
    ("dash at the end", control, "BUS_MAKE", 0, b"", bus(b"0-more-"), e.EINVAL),
    ("long name", control, "BUS_MAKE", 0, b"", bus(b"0-" + b"x" * 61), 0),
    ("too long name", control, "BUS_MAKE", 0, b"", bus(b"0-" + b"x" * 62), e.ENAMETOOLONG),
    ("empty name", control, "BUS_MAKE", 0, b"", bus(b""), e.EINVAL),
    ("there already", control, "BUS_MAKE", 0, b"", bus(b"0-test"), e.EEXIST),
    ("small bloom", control, "BUS_MAKE", 0, b"", bus(size=0), e.EINVAL),
    ("odd bloom", control, "BUS_MAKE", 0, b"", bus(size=12), e.EINVAL),
    ("large bloom", control, "BUS_MAKE", 0, b"", bus(size=4104), e.EINVAL),
    ("no hash", control, "BUS_MAKE", 0, b"", bus(hashes=0), e.EINVAL),
    ("bad metadata", control, "BUS_MAKE", 0, b"",
     bus(more=item(c.ITEM_ATTACH_FLAGS_SEND, u64(ALL + 1))), e.EINVAL),
    ("short parameter", control, "BUS_MAKE", 0, b"", GOOD[MAKE] + item(PARAM, u64(64)), e.EINVAL),
    ("not of an endpoint", door, "BUS_MAKE", 0, b"", bus(), e.EBADFD),
    ("asked only", control, "BUS_MAKE", c.NEGOTIATE, b"", b"", 0),

    ("a door", door, "ENDPOINT_MAKE", 3, b"", text(MAKE, b"0-d"), 0),
    ("bad flag", door, "ENDPOINT_MAKE", 4, b"", text(MAKE, b"0-d"), e.EINVAL),
    ("no name", door, "ENDPOINT_MAKE", 0, b"", b"", e.EINVAL),
    ("another's uid", door, "ENDPOINT_MAKE", 0, b"", text(MAKE, b"7-d"), e.EINVAL),
    ("not the owner", stranger, "ENDPOINT_MAKE", 0, b"", text(MAKE, b"1000-d"), e.EPERM),
    ("through a custom one", custom, "ENDPOINT_MAKE", 0, b"", text(MAKE, b"0-d"), e.EPERM),
    ("not of control", control, "ENDPOINT_MAKE", 0, b"", text(MAKE, b"0-d"), e.EBADFD),
    ("not of a connection", conn, "ENDPOINT_MAKE", 0, b"", text(MAKE, b"0-d"), e.EBADFD),
    ("asked only", door, "ENDPOINT_MAKE", c.NEGOTIATE, b"", b"", 0),

    ("policy", ep_owner, "ENDPOINT_UPDATE", 0, b"",
     text(NAME, b"a.b") + access(3, c.SEE) + text(NAME, b"a.*") + access(1, c.OWN, 5), 0),
    ("no policy", ep_owner, "ENDPOINT_UPDATE", 0, b"", b"", 0),
    ("bad flag", ep_owner, "ENDPOINT_UPDATE", 1, b"", b"", e.EINVAL),
    ("right without name", ep_owner, "ENDPOINT_UPDATE", 0, b"", access(3, c.SEE), e.EINVAL),
    ("bad right", ep_owner, "ENDPOINT_UPDATE", 0, b"", text(NAME, b"a.b") + access(3, 3), e.EINVAL),
    ("bad user", ep_owner, "ENDPOINT_UPDATE", 0, b"",
     text(NAME, b"a.b") + access(1, 0, 0xFFFFFFFF), e.EINVAL),
    ("bad whom", ep_owner, "ENDPOINT_UPDATE", 0, b"", text(NAME, b"a.b") + access(4, 0), e.EINVAL),
    ("twice", ep_owner, "ENDPOINT_UPDATE", 0, b"", text(NAME, b"a.b") * 2, e.EEXIST),
    ("bad name", ep_owner, "ENDPOINT_UPDATE", 0, b"", text(NAME, b"a"), e.EINVAL),
    ("not an owner", door, "ENDPOINT_UPDATE", 0, b"", b"", e.EBADFD),

    ("ordinary", door, "HELLO", 1, hello(), b"", 0),
    ("all metadata", door, "HELLO", 0, hello(send=c.NONE64, recv=c.NONE64), b"", 0),
    ("described", door, "HELLO", 0, hello(), text(c.ITEM_DESCRIPTION, b"me"), 0),
    ("badly described", door, "HELLO", 0, hello(), text(c.ITEM_DESCRIPTION, b"m e"), e.EINVAL),
    ("bad flag", door, "HELLO", 16, hello(), b"", e.EINVAL),
    ("bad metadata to send", door, "HELLO", 0, hello(send=ALL + 1), b"", e.EINVAL),
    ("bad metadata to get", door, "HELLO", 0, hello(recv=ALL + 1), b"", e.EINVAL),
    ("no pool", door, "HELLO", 0, hello(0), b"", e.EINVAL),
    ("odd pool", door, "HELLO", 0, hello(4097), b"", e.EINVAL),
    ("monitor", door, "HELLO", 8, hello(), b"", 0),
    ("stranger as monitor", stranger, "HELLO", 8, hello(), b"", e.EPERM),
    ("monitor through custom", custom, "HELLO", 8, hello(), b"", e.EOPNOTSUPP),
    ("activator", door, "HELLO", 2, hello(), text(NAME, b"a.b"), 0),
    ("activator, no name", door, "HELLO", 2, hello(), b"", e.EINVAL),
    ("activator, bad name", door, "HELLO", 2, hello(), text(NAME, b"a"), e.EINVAL),
    ("stranger as activator", stranger, "HELLO", 2, hello(), text(NAME, b"a.b"), e.EPERM),
    ("activator of many", door, "HELLO", 2, hello(), text(NAME, b"a.*"), e.EINVAL),
    ("second activator", lambda w: (activator(w), door(w))[1], "HELLO", 2, hello(),
     text(NAME, b"foo.act"), e.EEXIST),
    ("holder", door, "HELLO", 4, hello(), text(NAME, b"a.*") + access(3, 2), 0),
    ("holder, no name", door, "HELLO", 4, hello(), b"", e.EINVAL),
    ("second holder", lambda w: (holder(w), door(w))[1], "HELLO", 4, hello(),
     text(NAME, b"foo.hold"), e.EEXIST),
    ("monitor and holder", door, "HELLO", 12, hello(), text(NAME, b"a.b"), e.EINVAL),
    ("ordinary with name", door, "HELLO", 0, hello(), text(NAME, b"a.b"), e.EINVAL),
    ("as somebody else", door, "HELLO", 0, hello(), item(c.ITEM_CREDS, u64(*range(8))), 0),
    ("as nobody", door, "HELLO", 0, hello(), item(c.ITEM_CREDS, u64(*[0x1FFFFFFFF] * 8)), e.EINVAL),
    ("with a label", door, "HELLO", 0, hello(), text(c.ITEM_SECLABEL, b"l"), 0),
    ("stranger as somebody", stranger, "HELLO", 0, hello(), item(c.ITEM_CREDS, u64(*range(8))),
     e.EPERM),
    ("not of control", control, "HELLO", 0, hello(), b"", e.EBADFD),
    ("twice", conn, "HELLO", 0, hello(), b"", e.EBADFD),
    ("asked only", door, "HELLO", c.NEGOTIATE, b"", b"", 0),

    ("bye", conn, "BYEBYE", 0, b"", b"", 0),
    ("again", ended, "BYEBYE", 0, b"", b"", e.ECONNRESET),
    ("unread", busy, "BYEBYE", 0, b"", b"", e.EBUSY),
    ("bad flag", conn, "BYEBYE", 1, b"", b"", e.EINVAL),
    ("monitor", monitor, "BYEBYE", 0, b"", b"", e.EOPNOTSUPP),
    ("activator", activator, "BYEBYE", 0, b"", b"", e.EOPNOTSUPP),
    ("before hello", door, "BYEBYE", 0, b"", b"", e.EBADFD),

    ("what to send", conn, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_SEND, u64(3)), 0),
    ("what to get", monitor, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_RECV, u64(3)), 0),
    ("bad flags", conn, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_SEND, u64(ALL + 1)), e.EINVAL),
    ("bad flags to get", conn, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_RECV, u64(ALL + 1)),
     e.EINVAL),
    ("bad flag", conn, "UPDATE", 1, b"", b"", e.EINVAL),
    ("activator sends nothing", activator, "UPDATE", 0, b"",
     item(c.ITEM_ATTACH_FLAGS_SEND, u64(3)), e.EOPNOTSUPP),
    ("activator gets", activator, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_RECV, u64(3)), 0),
    ("holder gets nothing", holder, "UPDATE", 0, b"", item(c.ITEM_ATTACH_FLAGS_RECV, u64(3)),
     e.EOPNOTSUPP),
    ("holder's policy", holder, "UPDATE", 0, b"", text(NAME, b"x.*") + access(3, 1), 0),
    ("two names", holder, "UPDATE", 0, b"", text(NAME, b"x.y") + text(NAME, b"x.z"), e.E2BIG),
    ("right first", holder, "UPDATE", 0, b"", access(3, 1) + text(NAME, b"x.y"), e.EINVAL),
    ("no holder", conn, "UPDATE", 0, b"", text(NAME, b"x.y"), e.EOPNOTSUPP),
    ("over", ended, "UPDATE", 0, b"", b"", e.ECONNRESET),

    ("nothing there", conn, "FREE", 0, u64(0), b"", e.ENXIO),
    ("beyond", conn, "FREE", 0, u64(POOL + 8), b"", e.ENXIO),
    ("the empty one", conn, "FREE", 0, u64(POOL), b"", 0),
    ("not told of yet", busy, "FREE", 0, u64(0), b"", e.ENXIO),
    ("bad flag", conn, "FREE", 1, u64(POOL), b"", e.EINVAL),
    ("holder", holder, "FREE", 0, u64(POOL), b"", e.EOPNOTSUPP),

    ("of nobody", conn, "CONN_INFO", 0, info(), b"", e.EINVAL),
    ("no such id", conn, "CONN_INFO", 0, info(1 << 50), b"", e.ENXIO),
    ("no such name", conn, "CONN_INFO", 0, info(), text(NAME, b"no.such"), e.ESRCH),
    ("bad metadata", conn, "CONN_INFO", 0, info(1, ALL + 1), b"", e.EINVAL),
    ("bad flag", conn, "CONN_INFO", 1, info(1), b"", e.EINVAL),
    ("by name", owner, "CONN_INFO", 0, info(), text(NAME, b"foo.taken"), 0),
    ("name of another", owner, "CONN_INFO", 0, info(1 << 50), text(NAME, b"foo.taken"), e.ESRCH),
    ("name without end", conn, "CONN_INFO", 0, info(), item(NAME, b"foo"), e.EINVAL),
    ("of an activator", lambda w: (activator(w), conn(w))[1], "CONN_INFO", 0, info(),
     text(NAME, b"foo.act"), 0),

    ("creator", conn, "BUS_CREATOR_INFO", 0, info(), b"", 0),
    ("monitor asks", monitor, "BUS_CREATOR_INFO", 0, info(), b"", 0),
    ("bad metadata", conn, "BUS_CREATOR_INFO", 0, info(0, ALL + 1), b"", e.EINVAL),
    ("bad flag", conn, "BUS_CREATOR_INFO", 1, info(), b"", e.EINVAL),
    ("a name", conn, "BUS_CREATOR_INFO", 0, info(), text(NAME, b"a.b"), e.EINVAL),

    ("all", conn, "LIST", 15, b"", b"", 0),
    ("nothing", conn, "LIST", 0, b"", b"", 0),
    ("bad flag", conn, "LIST", 16, b"", b"", e.EINVAL),
    ("over", ended, "LIST", 0, b"", b"", e.ECONNRESET),

    ("a name", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.bar"), 0),
    ("all flags", conn, "NAME_ACQUIRE", 7, b"", text(NAME, b"foo.bar"), 0),
    ("what was answered", conn, "NAME_ACQUIRE", c.NAME_PRIMARY | c.NAME_ACQUIRED, b"",
     text(NAME, b"foo.bar"), 0),
    ("as activator", conn, "NAME_ACQUIRE", c.NAME_ACTIVATOR, b"", text(NAME, b"a.b"), e.EINVAL),
    ("in queue", conn, "NAME_ACQUIRE", c.NAME_IN_QUEUE, b"", text(NAME, b"a.b"), e.EINVAL),
    ("no name", conn, "NAME_ACQUIRE", 0, b"", b"", e.EINVAL),
    ("one word", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo"), e.EINVAL),
    ("dot first", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b".foo.bar"), e.EINVAL),
    ("digit first", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.1bar"), e.EINVAL),
    ("many", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.*"), e.EINVAL),
    ("long", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"a." + b"b" * 253), 0),
    ("too long", conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"a." + b"b" * 254), e.EINVAL),
    ("taken", owner, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.taken"), e.EEXIST),
    ("not given up", owner, "NAME_ACQUIRE", c.NAME_REPLACE, b"", text(NAME, b"foo.taken"), e.EEXIST),
    ("waiting", owner, "NAME_ACQUIRE", c.NAME_QUEUE, b"", text(NAME, b"foo.taken"), 0),
    ("stranger", stranger_conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.bar"), e.EPERM),
    ("custom", custom_conn, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.bar"), e.EPERM),
    ("monitor", monitor, "NAME_ACQUIRE", 0, b"", text(NAME, b"foo.bar"), e.EOPNOTSUPP),
    ("asked only", conn, "NAME_ACQUIRE", c.NEGOTIATE, b"", b"", 0),

    ("not there", conn, "NAME_RELEASE", 0, b"", text(NAME, b"foo.bar"), e.ESRCH),
    ("another's", owner, "NAME_RELEASE", 0, b"", text(NAME, b"foo.taken"), e.EADDRINUSE),
    ("an activator's", lambda w: (activator(w), conn(w))[1], "NAME_RELEASE", 0, b"",
     text(NAME, b"foo.act"), e.EADDRINUSE),
    ("no name", conn, "NAME_RELEASE", 0, b"", b"", e.EINVAL),
    ("bad flag", conn, "NAME_RELEASE", 1, b"", text(NAME, b"foo.bar"), e.EINVAL),
    ("monitor", monitor, "NAME_RELEASE", 0, b"", text(NAME, b"foo.bar"), e.EOPNOTSUPP),

    ("everything", conn, "MATCH_ADD", 0, u64(1), b"", 0),
    ("in place of", conn, "MATCH_ADD", 1, u64(1), b"", 0),
    ("bad flag", conn, "MATCH_ADD", 2, u64(1), b"", e.EINVAL),
    ("one generation", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_BLOOM_MASK, bytes(64)), 0),
    ("two generations", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_BLOOM_MASK, bytes(128)), 0),
    ("half a generation", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_BLOOM_MASK, bytes(96)), e.EDOM),
    ("no mask", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_BLOOM_MASK), e.EDOM),
    ("name", conn, "MATCH_ADD", 0, u64(1), text(NAME, b"a.b"), 0),
    ("bad name", conn, "MATCH_ADD", 0, u64(1), text(NAME, b"a"), e.EINVAL),
    ("ids", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_ID, u64(1)) + item(c.ITEM_DST_ID, u64(2)), 0),
    ("id changes", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_ID_ADD, u64(1, 0)), 0),
    ("short id change", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_ID_ADD, u64(1)), e.EINVAL),
    ("name change", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_NAME_ADD, name_change()), 0),
    ("unended name change", conn, "MATCH_ADD", 0, u64(1),
     item(c.ITEM_NAME_ADD, name_change(name=b"a.b")), e.EINVAL),
    ("foreign item", conn, "MATCH_ADD", 0, u64(1), item(c.ITEM_CREDS, bytes(64)), e.EINVAL),
    ("monitor", monitor, "MATCH_ADD", 0, u64(1), b"", e.EOPNOTSUPP),

    ("no such", conn, "MATCH_REMOVE", 0, u64(1), b"", e.EBADSLT),
    ("bad flag", conn, "MATCH_REMOVE", 1, u64(1), b"", e.EINVAL),
    ("monitor", monitor, "MATCH_REMOVE", 0, u64(1), b"", e.EOPNOTSUPP),

    ("nothing", conn, "RECV", 0, b"", b"", e.EAGAIN),
    ("nothing to drop", conn, "RECV", c.RECV_DROP, b"", b"", e.EAGAIN),
    ("something", busy, "RECV", 0, b"", b"", 0),
    ("a look", busy, "RECV", c.RECV_PEEK, b"", b"", 0),
    ("away with it", busy, "RECV", c.RECV_DROP, b"", b"", 0),
    ("urgent ones", busy, "RECV", c.RECV_USE_PRIORITY, struct.pack("<q", -1), b"", e.EAGAIN),
    ("urgent enough", busy, "RECV", c.RECV_USE_PRIORITY, b"", b"", 0),
    ("drop by priority", busy, "RECV", c.RECV_USE_PRIORITY | c.RECV_DROP, b"", b"", e.EINVAL),
    ("bad flag", busy, "RECV", 8, b"", b"", e.EINVAL),
    ("holder", holder, "RECV", 0, b"", b"", e.EOPNOTSUPP),
    ("monitor", monitor, "RECV", 0, b"", b"", e.EAGAIN),
    ("activator", activator, "RECV", 0, b"", b"", e.EAGAIN),

    ("monitor", monitor, "SEND", 0, b"", b"", e.EOPNOTSUPP),
    ("activator", activator, "SEND", 0, b"", b"", e.EOPNOTSUPP),
    ("no message", conn, "SEND", 0, u64(0), b"", e.EFAULT),
    ("message at an odd address", conn, "SEND", 0, u64(0x10001), b"", e.EFAULT),
    ("bad flag", conn, "SEND", 2, u64(0), b"", e.EINVAL),
    ("asked only", conn, "SEND", c.NEGOTIATE, u64(0), b"", 0),
]  # fmt: skip


def _id(case: Case) -> str:
    what, _, name, *_ = case
    return f"{name}: {what}"


@pytest.mark.parametrize("case", TABLE, ids=_id)
def test_command(everywhere: World, case: Case) -> None:
    _, who, name, flags, fields, items, expected = case
    client = who(everywhere)
    number, data = client.ioctl(name, command(name, flags, fields, items))
    assert e.errorcode.get(number, number) == e.errorcode.get(expected, expected)
    if flags == c.NEGOTIATE:
        form = uapi.BY_NAME[name]
        assert struct.unpack_from("<Q", data, 8)[0] == form.flags & ~c.NEGOTIATE


@pytest.mark.parametrize("form", uapi.FORMS, ids=lambda form: form.name)
def test_every_command_is_in_the_table(form: Any) -> None:
    assert any(case[2] == form.name for case in TABLE)


WHO = {
    "BUS_MAKE": control, "ENDPOINT_MAKE": door, "HELLO": door, "ENDPOINT_UPDATE": ep_owner,
}  # fmt: skip


@pytest.mark.parametrize("form", uapi.FORMS, ids=lambda form: form.name)
def test_form_of_a_command(everywhere: World, form: Any) -> None:
    """What is the same for all: size, alignment, items that do not fit into the command."""
    client = WHO.get(form.name, conn)(everywhere)
    good = command(form.name)
    assert client.ioctl(form.name, u64(form.size - 8) + good[8:])[0] == e.EINVAL
    assert client.ioctl(form.name, u64(c.CMD_MAX_SIZE + 8) + good[8:])[0] == e.EMSGSIZE
    assert client.ioctl(form.name, b"", client.memory.put(bytes(16) + good) + 1)[0] == e.EFAULT
    assert client.ioctl(form.name, b"", 8)[0] == e.EFAULT
    assert (
        client.ioctl(form.name, b"", client.memory.put(u64(form.size + 8) + good[8:]))[0]
        == e.EFAULT
    )
    for wrong in (u64(8, 1), u64(40, 1), u64(c.NONE64, 1), u64(16)):
        assert client.error(form.name, items=wrong) == e.EINVAL
    assert client.error(form.name, flags=BAD_FLAG) == e.EINVAL


@pytest.mark.parametrize("form", uapi.FORMS, ids=lambda form: form.name)
def test_negotiation(everywhere: World, form: Any) -> None:
    """Unknown items are crossed out; the flags that there are go back only if they were asked for."""
    client = WHO.get(form.name, conn)(everywhere)
    asked = [*form.items, 0x7777]
    data = client.do(form.name, c.NEGOTIATE, items=item(c.ITEM_NEGOTIATE, u64(*asked)))
    answered = struct.unpack_from(f"<{len(asked)}Q", data, form.size + 16)
    assert answered == (*form.items, 0)
    assert struct.unpack_from("<Q", data, 8)[0] == form.flags & ~c.NEGOTIATE


def _vec(client: Client, data: bytes) -> bytes:
    return item(c.ITEM_PAYLOAD_VEC, u64(len(data), client.memory.put(data)))


def _fds(*numbers: int) -> bytes:
    return item(c.ITEM_FDS, struct.pack(f"<{len(numbers)}i", *numbers))


def _memfd(fd: int, size: int = 8, start: int = 0) -> bytes:
    return item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", start, size, fd, 0))


LATER = 1 << 62
SIG, CALL, SYNC = c.SIGNAL, c.EXPECT_REPLY, c.SEND_SYNC_REPLY
EVERY = c.DST_BROADCAST

# what, destination (None: another connection), items, message's fields, SEND's flags, errno
MESSAGES: list[tuple[str, int | None, Callable[[Client], bytes], dict[str, int], int, int]] = [
    ("plain", None, lambda s: b"", {}, 0, 0),
    ("payload", None, lambda s: _vec(s, b"hello"), {}, 0, 0),
    ("zeros", None, lambda s: item(c.ITEM_PAYLOAD_VEC, u64(9, 0)), {}, 0, 0),
    ("no payload in a vec", None, lambda s: item(c.ITEM_PAYLOAD_VEC, u64(0, 0)), {}, 0, e.EINVAL),
    ("payload that is not there", None, lambda s: item(c.ITEM_PAYLOAD_VEC, u64(8, 8)), {}, 0, e.EFAULT),
    ("too much", None, lambda s: item(c.ITEM_PAYLOAD_VEC, u64((2 << 20) + 1, 0)), {}, 0, e.EMSGSIZE),
    ("too much in two", None, lambda s: item(c.ITEM_PAYLOAD_VEC, u64(2 << 20, 0)) * 2, {}, 0, e.EMSGSIZE),
    ("own id", None, lambda s: b"", {"src": -1}, 0, 0),
    ("another's id", None, lambda s: b"", {"src": 999}, 0, e.EINVAL),
    ("as the bus", None, lambda s: b"", {"payload_type": 0}, 0, e.EINVAL),
    ("bad flag", None, lambda s: b"", {"flags": 8}, 0, e.EINVAL),
    ("foreign item", None, lambda s: text(NAME, b"a.b"), {}, 0, e.EINVAL),
    ("no such id", 1 << 50, lambda s: b"", {}, 0, e.ENXIO),
    ("no destination", 0, lambda s: b"", {}, 0, e.EDESTADDRREQ),
    ("no such name", 0, lambda s: text(c.ITEM_DST_NAME, b"no.such"), {}, 0, e.ESRCH),
    ("bad name", 0, lambda s: text(c.ITEM_DST_NAME, b"no"), {}, 0, e.EINVAL),
    ("two names", 0, lambda s: text(c.ITEM_DST_NAME, b"a.b") * 2, {}, 0, e.EINVAL),
    ("name", 0, lambda s: text(c.ITEM_DST_NAME, b"foo.named"), {}, 0, 0),
    ("name and id", None, lambda s: text(c.ITEM_DST_NAME, b"foo.named"), {}, 0, 0),
    ("name and another id", 999, lambda s: text(c.ITEM_DST_NAME, b"foo.named"), {}, 0, e.EREMCHG),
    ("activator", 0, lambda s: text(c.ITEM_DST_NAME, b"foo.act"), {}, 0, 0),
    ("activator, not to be started", 0, lambda s: text(c.ITEM_DST_NAME, b"foo.act"), {"flags": 2}, 0,
     e.EADDRNOTAVAIL),
    ("broadcast", EVERY, lambda s: bloom(), {"flags": SIG}, 0, 0),
    ("broadcast, no signal", EVERY, lambda s: bloom(), {}, 0, e.EBADMSG),
    ("broadcast with timeout", EVERY, lambda s: bloom(), {"flags": SIG, "timeout": 1}, 0, e.ENOTUNIQ),
    ("broadcast with name", EVERY, lambda s: bloom() + text(c.ITEM_DST_NAME, b"foo.named"),
     {"flags": SIG}, 0, e.EBADMSG),
    ("broadcast with fds", EVERY, lambda s: bloom() + _fds(5), {"flags": SIG}, 0, e.ENOTUNIQ),
    ("broadcast call", EVERY, lambda s: bloom(), {"flags": SIG | CALL, "timeout": LATER}, 0, e.ENOTUNIQ),
    ("signal without filter", None, lambda s: b"", {"flags": SIG}, 0, e.EBADMSG),
    ("filter without signal", None, lambda s: bloom(), {}, 0, e.EBADMSG),
    ("signal to one", None, lambda s: bloom(), {"flags": SIG}, 0, 0),
    ("signal call", None, lambda s: bloom(), {"flags": SIG | CALL, "timeout": LATER}, 0, e.ENOTUNIQ),
    ("signal answer", None, lambda s: bloom(), {"flags": SIG, "timeout": 5}, 0, e.EINVAL),
    ("small filter", EVERY, lambda s: bloom(bits=bytes(56)), {"flags": SIG}, 0, e.EDOM),
    ("odd filter", EVERY, lambda s: bloom(bits=bytes(60)), {"flags": SIG}, 0, e.EFAULT),
    ("two filters", EVERY, lambda s: bloom() * 2, {"flags": SIG}, 0, e.EINVAL),
    ("call", None, lambda s: b"", {"flags": CALL, "timeout": LATER}, 0, 0),
    ("call without end", None, lambda s: b"", {"flags": CALL}, 0, e.EINVAL),
    ("waiting call", None, lambda s: b"", {"flags": CALL, "timeout": LATER}, SYNC, -1),
    ("waiting for nothing", None, lambda s: b"", {}, SYNC, e.EINVAL),
    ("over before it began", None, lambda s: b"", {"flags": CALL, "timeout": 1}, SYNC, e.ETIMEDOUT),
    ("answer to nothing", None, lambda s: b"", {"timeout": 77}, 0, e.EBADSLT),
    ("fds", None, lambda s: _fds(5, 6), {}, 0, 0),
    ("bad fd", None, lambda s: _fds(77), {}, 0, e.EBADF),
    ("sixteen fds", None, lambda s: _fds(*[5] * 16), {}, 0, 0),
    ("too many fds", None, lambda s: _fds(*[5] * 17), {}, 0, e.EMFILE),
    ("two lists of fds", None, lambda s: _fds(5) * 2, {}, 0, e.EINVAL),
    ("memfd", None, lambda s: _memfd(6), {}, 0, 0),
    ("no memfd", None, lambda s: _memfd(5), {}, 0, e.EMEDIUMTYPE),
    ("bad memfd", None, lambda s: _memfd(-1), {}, 0, e.EBADF),
    ("empty memfd", None, lambda s: _memfd(6, 0), {}, 0, e.EINVAL),
    ("memfd around the end", None, lambda s: _memfd(6, 8, c.NONE64), {}, 0, e.EMSGSIZE),
    ("too many memfds", None, lambda s: _memfd(6) * 17, {}, 0, e.E2BIG),
]  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case[0])
@pytest.mark.parametrize("installs", [False, True], ids=["inline", "installs"])
def test_message(world: World, case: Any, installs: bool) -> None:
    _, to, items, fields, flags, expected = case
    activator(world)
    receiver = world.conn(installs=installs)
    receiver.acquire(b"foo.named")
    sender = world.conn(installs=installs)
    sender.memory.fds = {5: FakeFd(), 6: FakeFd(b"12345678")}
    fields = dict(fields)
    if fields.get("src") == -1:
        fields["src"] = sender.id
    data = message(receiver.id if to is None else to, items(sender), **fields)
    number = sender.send(data, flags)
    assert e.errorcode.get(number, number) == e.errorcode.get(expected, expected)
    if expected > 0:
        assert receiver.try_recv() == e.EAGAIN
        # A refused message leaves nothing behind.
        assert all(fd.holders == 1 for fd in sender.memory.fds.values())


def test_limits_of_a_user(world: World) -> None:
    for number in range(c.USER_BUSES_MAX - 1):
        control(world).do("BUS_MAKE", items=bus(b"0-%d" % number))
    assert control(world).error("BUS_MAKE", items=bus(b"0-many")) == e.EMFILE
    assert other_control(world).error("BUS_MAKE", items=bus(b"1000-many")) == 0


def test_limit_of_connections(world: World) -> None:
    small = c.PAGE
    clients = [world.open().hello(pool=small) for _ in range(c.USER_CONNECTIONS_MAX)]
    assert world.open().error("HELLO", 0, hello(small)) == e.EMFILE
    # Another user is not in its way, and one gone makes room for one.
    world.open(uid=1000).hello(pool=small)
    clients[7].close()
    world.open().hello(pool=small)


def test_limit_of_matches_and_names(world: World) -> None:
    client = world.conn()
    for number in range(c.MATCHES_MAX):
        client.listen(cookie=number)
    assert client.error("MATCH_ADD", 0, u64(1)) == e.EMFILE
    client.listen(cookie=3, flags=c.MATCH_REPLACE)
    for number in range(c.NAMES_MAX):
        assert client.acquire(b"foo.n%d" % number) > 0
    assert client.acquire(b"foo.more") == -e.E2BIG
    assert client.acquire(b"foo.n7") > 0


def test_a_bus_ends_with_its_maker(world: World) -> None:
    client = world.conn()
    late = world.open()
    world.control.close()
    assert world.domain.buses == {}
    assert client.error("LIST", 15) == e.ECONNRESET
    assert late.error("HELLO", 0, hello()) == e.ESHUTDOWN


def test_a_custom_endpoint_ends_with_its_maker(world: World) -> None:
    maker, endpoint = world.endpoint()
    client = world.at(endpoint).hello()
    late = world.at(endpoint)
    maker.close()
    assert client.error("LIST", 15) == e.ECONNRESET
    assert late.error("HELLO", 0, hello()) == e.ESHUTDOWN
    assert world.conn().error("LIST", 15) == 0


def test_ids_are_never_used_again(world: World) -> None:
    control(world).do("BUS_MAKE", items=bus(b"0-second"))
    second = world.domain.buses[b"0-second"]
    seen = set()
    for _ in range(5):
        for client in (world.conn(), world.at(second.default).hello(), monitor(world)):
            assert client.id not in seen
            seen.add(client.id)
            client.close()


def test_time(world: World) -> None:
    before = time.monotonic_ns()
    assert before <= world.domain.monotonic() <= time.monotonic_ns()
