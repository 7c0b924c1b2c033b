"""One message in the other world's form, with its descriptors.

Invariant: a message that comes out of here is one that the receiving world's own checks let
through. Cookies, sender and destination are the bus's word, whatever the payload said. What cannot
be said in the other form, or would take too long to say, raises KdbusError.

A translation is done at once, while nothing else moves, so what takes a step of Python for each
value is bounded: see `VALUES_MAX`. Strings and arrays of numbers are copied, however long.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jitney.broker import message as classic
from jitney.broker.fds import FdSet
from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.message import DATA, FDS, MEMFD, ZEROS, Message

from .. import bloom, transcode
from ..gvariant import Malformed, TooMany
from .calls import SERIAL_MAX

VALUES_MAX = 32768
"""Values in a body, where an array of numbers is one; each takes about five microseconds."""

NEVER = (1 << 63) - 1
"""A deadline, for those who wait as long as it takes."""

_REPLIES = (classic.METHOD_RETURN, classic.ERROR)
_BYTES = (bytes, bytearray, memoryview)


class SharedFd:
    """A descriptor of a classic message, for as long as somebody in kdbus holds it."""

    def __init__(self, fd: int, owner: FdSet) -> None:
        self.fd = fd
        self.owner: FdSet | None = owner
        self.holders = 1

    def hold(self) -> SharedFd:
        self.holders += 1
        return self

    def drop(self) -> None:
        self.holders -= 1
        if not self.holders:
            self.owner = None
            self.fd = -1


class Translated(Message):
    """A message out of the classic world. It lets go of its descriptors with `drop()`: those who
    got it hold them themselves."""

    __slots__ = ()

    def drop(self) -> None:
        for handle in self.fds:
            handle.drop()
        self.fds = ()


def to_kdbus(
    bus: Any,
    msg: classic.Message,
    source: Any,
    receiver: Any,
    cookie: int | None = None,
    reply_cookie: int | None = None,
) -> Translated:
    """What a kdbus client gets of a classic message. `receiver` None: everybody."""
    try:
        said = transcode.from_classic(msg, cookie, reply_cookie, values=VALUES_MAX)
        laid = transcode.lay(said)
    except TooMany as error:
        raise KdbusError(errno.E2BIG) from error
    except Malformed as error:
        raise KdbusError(errno.EMSGSIZE) from error
    flags = c.NO_AUTO_START if msg.flags & classic.NO_AUTO_START else 0
    timeout = 0
    if msg.type == classic.SIGNAL:
        flags |= c.SIGNAL
    elif msg.type in _REPLIES:
        timeout = said.reply_cookie
    elif not msg.flags & classic.NO_REPLY_EXPECTED:
        flags |= c.EXPECT_REPLY
        timeout = NEVER
    message = Translated(c.DST_BROADCAST, flags, said.cookie, timeout)
    if receiver is not None:
        message.dst_id = receiver.id
    if msg.destination is not None and msg.destination[:1] != b":":
        message.add_name(msg.destination)
    message.payload_type = transcode.PAYLOAD_DBUS
    for part in laid:
        if part:
            message.add_data(part)
    if flags & c.SIGNAL:
        message.add_bloom(0, _filter(said, bus))
    if msg.fds is not None:
        message.add_fds([SharedFd(fd, msg.fds) for fd in msg.fds])
    message.source = source
    message.src_id = source.id
    message.caller = source.caller
    bus.accept(message)
    return message


def _filter(said: transcode.Dbus2Message, bus: Any) -> bytes:
    size, n_hash = bus.bloom_size, bus.bloom_hashes
    if not bloom.parameters_ok(size, n_hash):
        return b"\xff" * int(size)
    return bloom.filter_of(said, size, n_hash)


def payload(message: Message) -> bytes:
    """All that the message's parts are together."""
    out: list[Any] = []
    for part in message.parts:
        if part[0] == DATA:
            # What is still in a sender's outbox is copied now.
            out.append(part[1] if isinstance(part[1], _BYTES) else bytes(part[1]))
        elif part[0] == ZEROS:
            out.append(bytes(part[1]))
        elif part[0] == MEMFD:
            out.append(part[1].read(part[2], part[3]))
    return b"".join(out)


def size_of(message: Message) -> int:
    """How long the payload is."""
    sizes = {DATA: lambda p: len(p[1]), ZEROS: lambda p: p[1], MEMFD: lambda p: p[3]}
    return sum(sizes[part[0]](part) for part in message.parts if part[0] in sizes)


def to_classic(
    message: Message, destination: bytes | None, serial: int, limit: int
) -> classic.Message:
    """What a classic client gets of a kdbus message: EBADMSG, EMSGSIZE, E2BIG.

    `limit`: how long a message may be there. The payload has to be sd-bus's."""
    if message.payload_type != transcode.PAYLOAD_DBUS:
        raise KdbusError(errno.EBADMSG)
    if size_of(message) > limit:
        raise KdbusError(errno.EMSGSIZE)
    count = sum(part[1] for part in message.parts if part[0] == FDS)
    cookie_reply = 0 if message.flags & c.EXPECT_REPLY else message.timeout
    try:
        said = transcode.parse(payload(message), count)
        if not transcode.agrees(said, message.flags, message.cookie, cookie_reply):
            raise KdbusError(errno.EBADMSG)
        _check_kind(said, message.flags, cookie_reply)
        said = replace(said, sender=None, destination=destination)
        data = transcode.to_classic(said, serial, cookie_reply, VALUES_MAX)
    except TooMany as error:
        raise KdbusError(errno.E2BIG) from error
    except Malformed as error:
        raise KdbusError(errno.EBADMSG) from error
    msg = classic.Message()
    if not msg.load(data):
        raise KdbusError(errno.EBADMSG)
    if len(data) > limit:
        raise KdbusError(errno.EMSGSIZE)
    if message.fds:
        msg.fds = _duplicates(message.fds)
    return msg


def _check_kind(said: transcode.Dbus2Message, flags: int, cookie_reply: int) -> None:
    """The kernel's flags mean what the type means; others would wait for what never comes."""
    kind = said.type
    fits = (
        kind <= classic.SIGNAL
        and (kind == classic.SIGNAL) == bool(flags & c.SIGNAL)
        and (kind == classic.METHOD_CALL or not flags & c.EXPECT_REPLY)
        and (kind in _REPLIES) == bool(cookie_reply)
        and cookie_reply <= SERIAL_MAX
    )
    if not fits:
        raise KdbusError(errno.EBADMSG)


def _duplicates(handles: Iterable[Any]) -> FdSet:
    fds: list[int] = []
    found = FdSet(fds)
    for handle in handles:
        # Whoever sent it thinks that it was taken along.
        if handle.fd < 0:
            raise KdbusError(errno.EOPNOTSUPP)
        try:
            fds.append(os.dup(handle.fd))
        except OSError as error:
            raise KdbusError(errno.EMFILE) from error
    return found
