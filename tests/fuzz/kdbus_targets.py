"""Targets of the kdbus side: commands out of a client's memory, GVariant, whole messages in it.

Invariant: see `registry`. After any sequence of commands the bus still serves others, and when all
are gone nothing is charged to anybody.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

import kdbuskit
from kdbuskit import BASE, Client, World, bloom, command, item, message, text, u64

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.message import Message
from jitney.compat import wire
from jitney.kdbus import gvariant, matches, transcode, translate, uapi
from jitney.kdbus.gvariant import Malformed

from .registry import target
from .wire_targets import mended

NAMES = [form.name for form in uapi.FORMS]

# ---- forms


@target("gvariant", 1024, (b"a{sv}", b"(ii)", b"aay", b"av", b"a(yv)", b"\0", b"as"))
def variants(data: bytes) -> None:
    """Flags, a signature, a byte 0, then the bytes in one form and the other."""
    if not data:
        return
    big, big_out = bool(data[0] & 1), bool(data[0] & 2)
    signature, _, body = data[1:].partition(b"\0")
    try:
        classic = gvariant.to_classic(signature, body, big, big_out)
    except Malformed:
        pass
    else:
        wire.unmarshal(signature, classic, big_out)
        # One value has one form.
        assert gvariant.from_classic(signature, classic, big_out, big) == body
    try:
        form = gvariant.from_classic(signature, body, big, big_out)
    except Malformed:
        return
    wire.unmarshal(signature, body, big)
    assert gvariant.to_classic(signature, form, big_out, big) == body


@target("dbus2", 2048, (b"l\1\0\2", b"\0(s)", b"\0()", b"/a\0\0o", b"a.b\0\0s", b":1.5\0\0s"))
def whole(data: bytes) -> None:
    try:
        msg = transcode.parse(data, data[4] if len(data) > 4 and data[4] < 4 else 0)
    except Malformed:
        return
    again = transcode.parse(b"".join(transcode.lay(msg)), msg.n_fds)
    assert again == msg
    transcode.envelope_of(msg)
    try:
        classic = transcode.to_classic(msg)
    except Malformed:
        return
    core = Message()
    assert core.load(classic), classic
    there = transcode.from_classic(core, big=msg.big)
    assert (there.path, there.member, there.body) == (msg.path, msg.member, msg.body)


@target("classic2", 2048, (b"l\1\0\1", b"\1\1o\0", b"\6\1s\0", b"a{sv}", b":1.1"), mend=mended)
def from_classic(data: bytes) -> None:
    msg = Message()
    if not msg.load(data):
        return
    try:
        there = transcode.from_classic(msg)
        laid = transcode.lay(there)
    except Malformed:
        # Types that only one of the two has, or what sd-bus takes for too deep.
        return
    try:
        back = transcode.parse(b"".join(laid), msg.n_fds)
    except Malformed:
        return
    assert back == there
    core = Message()
    assert core.load(transcode.to_classic(back))
    assert (core.path, core.member, core.serial) == (msg.path, msg.member, msg.serial)


KINDS = (
    c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE, c.ITEM_ID_ADD, c.ITEM_ID_REMOVE,
    c.ITEM_CREDS, c.ITEM_PIDS, c.ITEM_AUXGROUPS, c.ITEM_SECLABEL, c.ITEM_REPLY_DEAD, c.ITEM_NAME,
    c.ITEM_ID, c.ITEM_DST_ID, c.ITEM_BLOOM_MASK,
)  # fmt: skip


@target("items", 512)
def notifications(data: bytes) -> None:
    """Which kind of item, and its data; then another."""
    found = []
    while data:
        size = data[1] if len(data) > 1 else 0
        found.append(translate.Item(KINDS[data[0] % len(KINDS)], data[2 : 2 + size]))
        data = data[2 + size :]
    for entry in found:
        try:
            for signal in translate.signals_of(entry, 3):
                assert Message().load(signal.message(1))
            assert Message().load(translate.no_reply(entry, 1, 2, b":1.3"))
        except Malformed:
            pass
    for read in (translate.credentials, matches.rule_of):
        try:
            read(found)  # type: ignore[operator]
        except Malformed:
            pass


# ---- commands

POOL_MAX = 1 << 20


class _Transport(kdbuskit.News):
    """Has not more memory than a few clients need, as the real ones have not all there is."""

    def memory(self, size: int) -> Any:
        if size > POOL_MAX:
            raise KdbusError(errno.ENOMEM)
        return super().memory(size)


@target("kdbus", 2048, tuple(command(name) for name in NAMES[3:]), short=300)
def commands(data: bytes) -> None:
    """Up to 16 commands (who, which, where), then the memory of whoever gives them."""
    if not data:
        return
    count = data[0] & 15
    given = data[1 : 1 + 4 * count]
    memory = data[1 + 4 * count :]
    world = World()
    honest = world.open().hello(pool=1 << 14)
    clients = [world.open(uid=1000).hello(pool=1 << 14) for _ in range(2)]
    clients += [world.open(uid=1001), world.open()]
    clients.append(Client(world.domain, None, uid=1000))
    for client in clients:
        if client.handle.conn is None:
            client.handle.transport = _Transport(False)
        client.memory.data = bytearray(memory)
        client.memory.fds = {3: kdbuskit.FakeFd(), 4: kdbuskit.FakeFd(bytes(100))}
    for at in range(0, len(given) - 3, 4):
        who, which, where = struct.unpack_from("<BBH", given, at)
        client = clients[who % len(clients)]
        form = uapi.BY_NAME[NAMES[which % len(NAMES)]]
        number, _ = client.ioctl(form.name, b"", BASE + where % (len(memory) + 16))
        assert number >= -1
    # Somebody else is not hindered.
    payload = item(c.ITEM_PAYLOAD_VEC, u64(4, honest.memory.put(b"four")))
    assert honest.send(message(honest.id, payload)) == 0
    while (got := honest.try_recv()) and not isinstance(got, int):
        if got.payload == b"four":
            break
    else:
        raise AssertionError(f"nothing came: {got}")
    for client in clients:
        client.handle.close()
        for handle in client.memory.fds.values():
            assert handle.holders >= 1
    honest.handle.close()
    for client in clients:
        for handle in client.memory.fds.values():
            assert handle.holders == 1, "a descriptor is still held"


def seeds() -> list[bytes]:
    """Commands as programs give them."""
    found = []
    hello = command("HELLO", c.HELLO_ACCEPT_FD, u64(c.ATTACH_ALL, c.ATTACH_ALL, 0, 0, 1 << 16))
    name = text(c.ITEM_NAME, b"com.example.A")
    simple = {
        "HELLO": hello,
        "NAME_ACQUIRE": command("NAME_ACQUIRE", 0, items=name),
        "NAME_RELEASE": command("NAME_RELEASE", items=name),
        "MATCH_ADD": command("MATCH_ADD", 0, u64(1), item(c.ITEM_ID, u64(c.NONE64))),
        "MATCH_REMOVE": command("MATCH_REMOVE", 0, u64(1)),
        "CONN_INFO": command("CONN_INFO", 0, u64(1, c.ATTACH_ALL)),
        "BUS_CREATOR_INFO": command("BUS_CREATOR_INFO", 0, u64(0, c.ATTACH_ALL)),
        "LIST": command("LIST", 15),
        "RECV": command("RECV"),
        "FREE": command("FREE", 0, u64(0)),
        "UPDATE": command("UPDATE", items=item(c.ITEM_ATTACH_FLAGS_RECV, u64(0))),
        "BYEBYE": command("BYEBYE"),
        "ENDPOINT_MAKE": command(
            "ENDPOINT_MAKE", c.ACCESS_WORLD, items=text(c.ITEM_MAKE_NAME, b"1000-x")
        ),
        "BUS_MAKE": command(
            "BUS_MAKE",
            items=text(c.ITEM_MAKE_NAME, b"1000-x") + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1)),
        ),
    }
    for name_, data in simple.items():
        number = NAMES.index(name_)
        for who in (0, 2, 4):
            found.append(b"\1" + struct.pack("<BBH", who, number, 0) + data)
    payload = b"payload!"
    parts = [
        item(c.ITEM_PAYLOAD_VEC, u64(8, BASE + 56)),
        item(c.ITEM_PAYLOAD_VEC, u64(8, 0)),
        item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<2QiI", 0, 50, 4, 0)),
        item(c.ITEM_FDS, struct.pack("<2i", 3, 4)),
        text(c.ITEM_DST_NAME, b"com.example.A"),
    ]
    sends = [
        (message(1, parts[0] + parts[1]), 0),
        (message(1, parts[0], c.EXPECT_REPLY, timeout=1 << 60), 0),
        (message(2, parts[2] + parts[3]), 0),
        (message(c.NONE64, parts[0] + bloom(), c.SIGNAL), 0),
        (message(0, parts[0] + parts[4]), 0),
        (message(2, parts[0], c.EXPECT_REPLY, timeout=1 << 60), c.SEND_SYNC_REPLY),
    ]
    for data, flags in sends:
        # The command, the payload and the message, each where the other says it is.
        memory = command("SEND", flags, u64(BASE + 64)) + payload + data
        number = NAMES.index("SEND")
        receive = NAMES.index("RECV")
        ops = struct.pack("<BBH", 0, number, 0) + struct.pack("<BBH", 1, receive, len(memory))
        found.append(b"\2" + ops + memory + simple["RECV"])
    return found
