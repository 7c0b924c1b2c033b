"""Whole messages between D-Bus 1 and the form that kdbus clients send each other ("dbus2").

Invariant: what `parse()` lets through is one message in normal form with valid fields, so what
`to_classic()` makes of it is a valid D-Bus 1 message, or `Malformed` is raised.

On kdbus the bus does not know this form; it is an agreement between clients, of which sd-bus is
the only one that was in wide use. Facts from systemd v223 to v226 (`bus-message.c`, `bus-kernel.c`,
`bus-protocol.h`). v221 and v222 write the same but for the body's type, which has no parentheses
around it there; the two cannot be told apart for certain, and neither reads the other. The code of
v226, run outside of this tree, wrote the same bytes as this module for thousands of random messages
and read all of ours; but it reads none with less than two fields (its own could not be, either), so
a reply needs a destination.

A message is one GVariant, of type "(yyyyuta{tv}v)":

- byte order 'l' or 'B', type, flags, version 2, a reserved word, the cookie in 64 bits: the same 16
  bytes in which D-Bus 1 has its fixed header, and the first four of them mean the same;
- the fields, by D-Bus 1's numbers, but no SIGNATURE; REPLY_SERIAL is a `t`, UNIX_FDS a `u`;
- the body: a variant with one struct in it, "()" and its one zero byte if there are no arguments;
- a framing offset: where the fields end.

It goes into a kdbus message as PAYLOAD items: `head` is all of the first one, with the padding up
to the body; `body` may be in as many as one likes and in a memfd; `footer`, which is the end of the
variant and the framing offset, is all of the last one or its end, and in no memfd.

Cookies have 64 bits and serials 32; a front with more than 2**32 messages has to give serials of
its own, which `to_classic()` takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import pack, unpack_from
from typing import NamedTuple

from jitney.broker import message as core
from jitney.broker import syntax
from jitney.broker.message import MAX_MESSAGE
from jitney.compat import wire

from . import gvariant
from .gvariant import NATIVE_BIG, Malformed, framing_width, items_of, offset_width, variant_of

VERSION = 2
HEADER = 16
DRIVER = b"org.freedesktop.DBus"
_LOCAL_PATH = b"/org/freedesktop/DBus/Local"
_LOCAL_INTERFACE = b"org.freedesktop.DBus.Local"

MSG_EXPECT_REPLY = 1 << 0
MSG_NO_AUTO_START = 1 << 1
MSG_SIGNAL = 1 << 2
PAYLOAD_DBUS = 0x4442757344427573
SRC_ID_KERNEL = 0
DST_ID_NAME = 0
DST_ID_BROADCAST = (1 << 64) - 1

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY, _DESTINATION, _SENDER = range(1, 8)
_SIGNATURE, _UNIX_FDS = 8, 9
_MAX_FIELDS = 256
"""Those that nobody knows yet counted; each costs as much as a small message."""

_TYPES = {
    _PATH: b"o", _INTERFACE: b"s", _MEMBER: b"s", _ERROR_NAME: b"s", _REPLY: b"t",
    _DESTINATION: b"s", _SENDER: b"s", _UNIX_FDS: b"u",
}  # fmt: skip
_VALID = {
    _PATH: syntax.is_path,
    _INTERFACE: syntax.is_interface,
    _MEMBER: syntax.is_member,
    _ERROR_NAME: syntax.is_interface,
    _DESTINATION: syntax.is_bus_name,
    _SENDER: syntax.is_bus_name,
}


@dataclass(slots=True)
class Dbus2Message:
    """One message; `body` is the struct of its arguments in GVariant, in the order `big` says."""

    type: int
    flags: int = 0
    cookie: int = 0
    reply_cookie: int = 0
    path: bytes | None = None
    interface: bytes | None = None
    member: bytes | None = None
    error_name: bytes | None = None
    destination: bytes | None = None
    sender: bytes | None = None
    signature: bytes = b""
    body: bytes = b"\0"
    n_fds: int = 0
    big: bool = NATIVE_BIG


class Laid(NamedTuple):
    """The bytes of a message, in the parts that may not be mixed."""

    head: bytes
    body: bytes
    footer: bytes


class Envelope(NamedTuple):
    """What the kdbus message around the payload says of it: fields of struct kdbus_msg.

    `dst_name` is for an item DST_NAME; None if the message goes to an id or to all."""

    flags: int
    cookie: int
    cookie_reply: int
    dst_id: int
    dst_name: bytes | None


# ---- writing


def lay(msg: Dbus2Message) -> Laid:
    """The message's bytes. Malformed if it is longer than a message may be."""
    order = ">" if msg.big else "<"
    fields = bytearray()
    ends = []
    for code, value in _fields(msg, order):
        fields += bytes(-len(fields) & 7)
        fields += pack(order + "Q", code) + value + b"\0" + _TYPES[code]
        ends.append(len(fields))
    if ends:
        fields += gvariant.framing(ends, len(fields))
    end = HEADER + len(fields)
    head = pack(
        order + "4BIQ",
        ord("B") if msg.big else ord("l"),
        msg.type,
        msg.flags,
        VERSION,
        0,
        msg.cookie,
    )
    head += fields + bytes(-end & 7)
    footer = b"\0(" + msg.signature + b")"
    size = len(head) + len(msg.body) + len(footer)
    footer += gvariant.framing([end], size)
    if len(head) + len(msg.body) + len(footer) > MAX_MESSAGE:
        raise Malformed("too long for a message")
    return Laid(head, msg.body, footer)


def _fields(msg: Dbus2Message, order: str) -> list[tuple[int, bytes]]:
    # In the order in which sd-bus appends them, of which a method call has one of its own.
    fields: list[tuple[int, bytes | None]] = [(_PATH, msg.path)]
    names = [(_INTERFACE, msg.interface), (_MEMBER, msg.member)]
    fields += reversed(names) if msg.type == core.METHOD_CALL else names
    if msg.reply_cookie:
        fields.append((_REPLY, pack(order + "Q", msg.reply_cookie)))
    fields.append((_DESTINATION, msg.destination))
    fields.append((_ERROR_NAME, msg.error_name))
    fields.append((_SENDER, msg.sender))
    if msg.n_fds:
        fields.append((_UNIX_FDS, pack(order + "I", msg.n_fds)))
    return [
        (code, value + b"\0" if code in _VALID else value)
        for code, value in fields
        if value is not None
    ]


def from_classic(
    msg: core.Message,
    cookie: int | None = None,
    reply_cookie: int | None = None,
    big: bool = NATIVE_BIG,
    values: int = MAX_MESSAGE,
) -> Dbus2Message:
    """The same message for kdbus clients; cookies in place of its serials, if they are given.

    What is no method call says that it expects no reply, as clients of kdbus compare that with
    whether it is awaited. Malformed only if it is too long there, or has more `values`."""
    flags = msg.flags
    if msg.type != core.METHOD_CALL:
        flags |= core.NO_REPLY_EXPECTED
    return Dbus2Message(
        type=msg.type,
        flags=flags,
        cookie=msg.serial if cookie is None else cookie,
        # In a call or a signal it means nothing, and sd-bus refuses it.
        reply_cookie=_reply_of(msg) if reply_cookie is None else reply_cookie,
        path=msg.path,
        interface=msg.interface,
        member=msg.member,
        error_name=msg.error_name,
        destination=msg.destination,
        signature=msg.signature,
        body=gvariant.from_classic(msg.signature, msg.body(), msg.big_endian, big, values=values),
        n_fds=msg.n_fds,
        big=big,
    )


def _reply_of(msg: core.Message) -> int:
    return 0 if msg.type in (core.METHOD_CALL, core.SIGNAL) else int(msg.reply_serial)


# ---- reading


def parse(data: bytes, n_fds: int = 0) -> Dbus2Message:
    """The message that all PAYLOAD items together are, with `n_fds` descriptors beside them.

    Malformed if sd-bus would refuse it, or if it is not in normal form."""
    size = len(data)
    if size < HEADER or size > MAX_MESSAGE:
        raise Malformed("not as long as a message")
    if data[:1] not in (b"l", b"B") or data[3] != VERSION:
        raise Malformed("not a message of version 2")
    big = data[:1] == b"B"
    order = ">" if big else "<"
    cookie: int = unpack_from(order + "Q", data, 8)[0]
    if not data[1] or not cookie:
        raise Malformed("message without a type or a cookie")
    width = offset_width(size)
    end = int.from_bytes(data[size - width :], "little")
    start = end + (-end & 7)
    if end < HEADER or start > size - width or framing_width(size - width, 1) != width:
        raise Malformed("framing offset that does not fit the message")
    if any(data[end:start]):
        raise Malformed("padding that is not zero")
    signature, stop = variant_of(data, start, size - width)
    if signature[:1] != b"(" or signature[-1:] != b")":
        raise Malformed("body that is not a struct")
    msg = Dbus2Message(data[1], data[2], cookie, big=big)
    msg.signature = signature[1:-1]
    gvariant.body_type(msg.signature)
    msg.body = data[start:stop]
    _read_fields(msg, data, end, order)
    if msg.n_fds != n_fds:
        raise Malformed("not as many descriptors as the message says")
    _check(msg)
    return msg


def _read_fields(msg: Dbus2Message, data: bytes, end: int, order: str) -> None:
    seen = 0
    pos = HEADER
    ends = items_of(data, HEADER, end)
    if len(ends) > _MAX_FIELDS:
        raise Malformed("too many header fields")
    for offset in ends:
        start = gvariant.skip(data, pos, 8, end)
        pos = HEADER + offset
        if start + 8 > pos or pos > end:
            raise Malformed("header field that does not lie where it should")
        code: int = unpack_from(order + "Q", data, start)[0]
        kind, stop = variant_of(data, start + 8, pos)
        if not code or code == _SIGNATURE:
            raise Malformed("header field that may not be there")
        if code not in _TYPES:
            continue
        if kind != _TYPES[code] or seen >> code & 1:
            raise Malformed("header field of another type, or there twice")
        seen |= 1 << code
        _take(msg, code, data[start + 8 : stop], order)


def _take(msg: Dbus2Message, code: int, value: bytes, order: str) -> None:
    if code in (_REPLY, _UNIX_FDS):
        if len(value) != (8 if code == _REPLY else 4):
            raise Malformed("header field of another size")
        if code == _UNIX_FDS:
            msg.n_fds = unpack_from(order + "I", value)[0]
            return
        msg.reply_cookie = unpack_from(order + "Q", value)[0]
        if not msg.reply_cookie:
            raise Malformed("reply to no cookie")
        return
    text = value[:-1]
    if value[-1:] != b"\0" or not _VALID[code](text):
        raise Malformed("header field that is not valid")
    if code == _PATH:
        msg.path = text
    elif code == _INTERFACE:
        msg.interface = text
    elif code == _MEMBER:
        msg.member = text
    elif code == _ERROR_NAME:
        msg.error_name = text
    elif code == _DESTINATION:
        msg.destination = text
    else:
        msg.sender = text


def _check(msg: Dbus2Message) -> None:
    if msg.type == core.METHOD_CALL:
        fits = msg.path is not None and msg.member is not None and not msg.reply_cookie
    elif msg.type == core.SIGNAL:
        fits = None not in (msg.path, msg.interface, msg.member) and not msg.reply_cookie
    elif msg.type == core.METHOD_RETURN:
        fits = msg.reply_cookie > 0
    elif msg.type == core.ERROR:
        fits = msg.reply_cookie > 0 and msg.error_name is not None
    else:
        fits = True
    if not fits:
        raise Malformed("header fields that do not fit the type")
    if (
        msg.path == _LOCAL_PATH
        or msg.interface == _LOCAL_INTERFACE
        or msg.sender == _LOCAL_INTERFACE
    ):
        raise Malformed("message that claims to be local")


def to_classic(
    msg: Dbus2Message,
    serial: int | None = None,
    reply_serial: int | None = None,
    values: int = MAX_MESSAGE,
) -> bytes:
    """The same message in D-Bus 1, little-endian; serials in place of its cookies, if given."""
    serial = msg.cookie if serial is None else serial
    reply_serial = msg.reply_cookie if reply_serial is None else reply_serial
    if not 0 < serial <= 0xFFFFFFFF or reply_serial > 0xFFFFFFFF:
        raise Malformed("cookie that no serial can hold")
    data = wire.message(
        type=msg.type,
        serial=serial,
        flags=msg.flags,
        path=msg.path,
        interface=msg.interface,
        member=msg.member,
        error_name=msg.error_name,
        destination=msg.destination,
        sender=msg.sender,
        reply_serial=reply_serial,
        signature=msg.signature.decode("ascii"),
        body=gvariant.to_classic(msg.signature, msg.body, msg.big, False, values=values),
        n_fds=msg.n_fds,
    )
    if len(data) > MAX_MESSAGE:
        raise Malformed("too long for a message")
    return data


# ---- the kdbus message around it


def unique_name(id: int) -> bytes:
    return b":1.%d" % id


def id_of(name: bytes) -> int | None:
    """The id in a unique name of kdbus; None for any other name."""
    digits = name[3:]
    if name[:3] != b":1." or not digits.isdigit() or digits[:1] == b"0" or len(digits) > 20:
        return None
    number = int(digits)
    return number if number < DST_ID_BROADCAST else None


def envelope_of(msg: Dbus2Message) -> Envelope:
    """What the kdbus message has to say for clients to take this payload."""
    flags = MSG_SIGNAL if msg.type == core.SIGNAL else 0
    no_reply = msg.flags & core.NO_REPLY_EXPECTED
    if not no_reply:
        flags |= MSG_EXPECT_REPLY
    if msg.flags & core.NO_AUTO_START:
        flags |= MSG_NO_AUTO_START
    dst_id, dst_name = DST_ID_BROADCAST, None
    if msg.destination is not None:
        known = id_of(msg.destination)
        dst_id, dst_name = (DST_ID_NAME, msg.destination) if known is None else (known, None)
    return Envelope(flags, msg.cookie, msg.reply_cookie if no_reply else 0, dst_id, dst_name)


def agrees(msg: Dbus2Message, flags: int, cookie: int, cookie_reply: int) -> bool:
    """Whether the payload says the same as the kdbus message around it; else clients drop it."""
    no_reply = bool(msg.flags & core.NO_REPLY_EXPECTED)
    no_start = bool(msg.flags & core.NO_AUTO_START)
    return (
        msg.cookie == cookie
        and no_reply != bool(flags & MSG_EXPECT_REPLY)
        and no_start == bool(flags & MSG_NO_AUTO_START)
        and (not no_reply or msg.reply_cookie == cookie_reply)
    )


def delivered(
    msg: Dbus2Message, src_id: int, dst_id: int, dst_name: bytes | None, own_id: int
) -> Dbus2Message:
    """The message with sender and receiver as the bus knows them, whatever it says itself."""
    destination: bytes | None
    if dst_name is not None:
        destination = dst_name
    elif dst_id == DST_ID_BROADCAST:
        destination = None
    else:
        destination = unique_name(own_id if dst_id == DST_ID_NAME else dst_id)
    sender = DRIVER if src_id == SRC_ID_KERNEL else unique_name(src_id)
    return replace(msg, sender=sender, destination=destination)
