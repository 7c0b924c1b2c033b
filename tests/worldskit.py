"""A bus with clients of both worlds, without sockets or FUSE, and what they say to each other."""

from __future__ import annotations

import struct
from typing import Any

import corebus
from corebus import OpenPolicy, RecordingFront
from kdbuskit import Client, Got, item, message, text, u64

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.metadata import Creds
from jitney.broker.limits import Limits
from jitney.broker.message import Message
from jitney.compat import wire
from jitney.compat.errors import NAMES, NO_REPLY
from jitney.kdbus import bloom, gvariant, matches, transcode
from jitney.kdbus.transcode import Dbus2Message
from jitney.kdbus.worlds.front import attach

FOREVER = 1 << 62


class ClassicCreds:
    """What a socket would say."""

    def __init__(self, uid: int, pid: int | None = 77) -> None:
        self.uid = uid
        self.gid = uid
        self.pid = pid
        self.described = ""

    def groups(self) -> list[int]:
        return [self.uid, 4242]

    kernel_groups = groups

    def label(self) -> bytes | None:
        return b"a_label"


class ClassicFront(RecordingFront):
    """Says errors as the classic front does, and writes everything down as well."""

    def __init__(self) -> None:
        super().__init__()
        self.policy: Any = OpenPolicy()
        self.starts: set[bytes] = set()
        self.kept: list[tuple[Connection, Message, bytes]] = []
        self.serial = 0

    def give_policy(self, conn: Connection) -> None:
        self.bus.set_policy(conn, self.policy)

    registered = give_policy

    def may_connect(self, uid: int) -> bool:
        return uid != 6666

    def error(self, conn: Connection, serial: int, name: str, words: str) -> None:
        self.serial += 1
        self.bus.emit(
            conn,
            wire.message(
                wire.ERROR,
                self.serial,
                flags=wire.NO_REPLY,
                error_name=name.encode(),
                destination=conn.unique_name,
                reply_serial=serial,
                signature="s",
                body=wire.marshal("s", [words]),
            ),
        )

    def refused(self, conn: Connection, msg: Message, refused: Any) -> None:
        self.events.append(("refused", conn, msg.serial, refused.code, refused.text))
        self.error(conn, msg.serial, NAMES[refused.code], refused.text)

    def no_reply(self, caller: Connection, serial: int, words: str) -> None:
        self.events.append(("no_reply", caller, serial, words))
        self.error(caller, serial, NO_REPLY, words)

    def activate(self, conn: Connection, msg: Message, name: bytes) -> Any:
        if name in self.starts:
            self.kept.append((conn, msg.copy(), name))
            return None
        return super().activate(conn, msg, name)

    def name_owned(self, conn: Connection, name: bytes) -> None:
        self.events.append(("name_owned", conn, name))
        kept = [one for one in self.kept if one[2] == name]
        self.kept = [one for one in self.kept if one[2] != name]
        for caller, msg, _ in kept:
            self.bus.deliver_kept(caller, msg, conn)

    def changes(self) -> list[tuple[bytes, int, int]]:
        """(name, id before, id after) of each change so far; forgets all events."""
        return [
            (name, old.id if old is not None else 0, new.id if new is not None else 0)
            for _, name, old, new in self.take("name_owner_changed")
        ]


class Shared:
    """The bus. `later`: what the classic side's thread is to do, where a test wants it put off."""

    def __init__(self, later: list[Any] | None = None, **limits: int) -> None:
        chosen = Limits()
        for name, value in limits.items():
            setattr(chosen, name, value)
        self.front = ClassicFront()
        self.core = self.front.bus = Bus(chosen, self.front)
        self.domain = Domain()
        self.now = 1_000_000
        self.domain.monotonic = lambda: self.now
        self.bus = attach(
            self.core,
            self.domain,
            b"0-both",
            Creds(0, 0, 0, (), True),
            later=later.append if later is not None else None,
            startable=lambda name: name in self.front.starts,
        )
        self.worlds: Any = self.bus.foreign

    def classic(self, uid: int = 0, *, fds: bool = True) -> Connection:
        conn = self.core.connect(uid)
        conn.accepts_fds = fds
        conn.creds = ClassicCreds(uid)
        self.core.hello(conn)
        self.core.announce(conn)
        return conn

    def open(self, **more: Any) -> Client:
        return Client(self.domain, self.bus.default, **more)

    def kdbus(self, flags: int = c.HELLO_ACCEPT_FD, items: bytes = b"", **more: Any) -> Client:
        return self.open(**more).hello(flags, items)

    def activator(self, name: bytes) -> Client:
        return self.kdbus(c.HELLO_ACTIVATOR | 1, text(c.ITEM_NAME, name))

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        self.domain.expire()


def unique(who: Client | Connection) -> bytes:
    return b":1.%d" % who.id


# What kdbus clients say and hear


def dbus2(kind: int, cookie: int = 1, **fields: Any) -> Dbus2Message:
    """A message in sd-bus's form; `values` with `signature` make the body."""
    values = fields.pop("values", ())
    signature = fields.get("signature", b"")
    flags = fields.pop("flags", 0)
    if kind != wire.CALL:
        flags |= wire.NO_REPLY
    body = gvariant.pack(signature, values)
    return Dbus2Message(kind, flags, cookie, body=body, **fields)


def send(
    client: Client,
    said: Dbus2Message,
    *,
    timeout: int = FOREVER,
    sync: bool = False,
    fds: tuple[int, ...] = (),
    pieces: tuple[bytes, ...] | None = None,
    **changed: Any,
) -> int:
    """SEND of it, as sd-bus would; the errno. `changed`: fields of the kdbus message itself."""
    laid = transcode.lay(said)
    envelope = transcode.envelope_of(said)
    items = b""
    for part in pieces if pieces is not None else filter(None, laid):
        address = client.memory.put(part)
        items += item(c.ITEM_PAYLOAD_VEC, u64(len(part), address))
    if envelope.dst_name is not None:
        items += text(c.ITEM_DST_NAME, envelope.dst_name)
    if envelope.flags & c.SIGNAL:
        items += item(c.ITEM_BLOOM_FILTER, u64(0) + bloom.filter_of(said))
    if fds:
        items += item(c.ITEM_FDS, struct.pack(f"<{len(fds)}i", *fds))
    fields: dict[str, Any] = {
        "flags": envelope.flags,
        "cookie": envelope.cookie,
        "timeout": timeout if envelope.flags & c.EXPECT_REPLY else envelope.cookie_reply,
        "payload_type": transcode.PAYLOAD_DBUS,
    }
    data = message(envelope.dst_id, items, **(fields | changed))
    return client.send(data, c.SEND_SYNC_REPLY if sync else 0)


def call(client: Client, to: bytes, cookie: int = 1, **more: Any) -> int:
    """The errno of a call to `/a com.example.I.M`."""
    sending = {name: more.pop(name) for name in ("timeout", "sync", "fds") if name in more}
    said = dbus2(
        wire.CALL, cookie, path=b"/a", interface=b"com.example.I", member=b"M", destination=to,
        **more,
    )  # fmt: skip
    return send(client, said, **sending)


def signal(client: Client, cookie: int = 1, **more: Any) -> int:
    fields = {"path": b"/a", "interface": b"com.example.I", "member": b"S"} | more
    return send(client, dbus2(wire.SIGNAL, cookie, **fields))


def answer(client: Client, to: bytes, cookie: int, **more: Any) -> int:
    return send(client, dbus2(wire.RETURN, 99, reply_cookie=cookie, destination=to, **more))


def listen(client: Client, rule: Any, cookie: int = 1) -> None:
    """The matches that sd-bus would install."""
    for match in matches.of_rule(rule):
        items = b"".join(item(one.type, one.data) for one in match)
        client.do("MATCH_ADD", 0, u64(cookie), items)


def listen_to_own(client: Client) -> None:
    for match in matches.always(client.id):
        items = b"".join(item(one.type, one.data) for one in match)
        client.do("MATCH_ADD", 0, u64(7), items)


def parsed(got: Got, own: int) -> Dbus2Message:
    """The message that sd-bus would make of it."""
    fds = got.get(c.ITEM_FDS)
    said = transcode.parse(got.payload, len(fds) // 4 if fds is not None else 0)
    cookie_reply = 0 if got.flags & c.EXPECT_REPLY else got.timeout
    assert transcode.agrees(said, got.flags, got.cookie, cookie_reply)
    name = got.get(c.ITEM_DST_NAME)
    return transcode.delivered(said, got.src, got.dst, name[:-1] if name else None, own)


def hear(client: Client) -> Dbus2Message:
    return parsed(client.recv(), client.id)


def values(said: Dbus2Message) -> list[Any]:
    return gvariant.unpack(said.signature, said.body, said.big)


def notices(client: Client) -> list[tuple[Any, ...]]:
    """All that is in the queue: (kind, name, old, new) of notifications about names, (kind, id) of
    those about ids, (kind, cookie) of lost replies, and ("message", sender, member)."""
    out: list[tuple[Any, ...]] = []
    while isinstance(got := client.try_recv(), Got):
        kind = next((kind for kind in got.kinds() if kind >= 0x8000), 0)
        data = got.get(kind)
        if not kind:
            said = parsed(got, client.id)
            out.append(("message", got.src, said.member))
        elif kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
            assert data is not None
            out.append((kind, struct.unpack_from("<Q", data)[0]))
        elif kind in (c.ITEM_REPLY_DEAD, c.ITEM_REPLY_TIMEOUT):
            out.append((kind, got.timeout))
        else:
            assert data is not None
            old, _, new, _ = struct.unpack_from("<4Q", data)
            out.append((kind, data[32:-1], old, new))
    return out


# What classic clients say and hear


def tell(shared: Shared, conn: Connection, msg: Message) -> None:
    shared.core.dispatch(conn, msg)


def reply_to(msg: Message, serial: int = 500, **more: Any) -> Message:
    """A classic answer to a message that came with its sender."""
    return corebus.message(
        wire.RETURN, serial, flags=wire.NO_REPLY, destination=msg.sender, reply_serial=msg.serial,
        **more,
    )  # fmt: skip
