"""Rewrite: a recorded message as it has to be on another bus, where connections have other names.

Invariant: nothing changes but SENDER, which is left out, and unique names: the destination, and
those in the arguments of calls to the bus (match rules, for example). Other arguments are opaque.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from struct import Struct
from typing import Any

from jitney.broker.message import Message

from .. import wire

_DESTINATION, _SENDER = 6, 7
_DRIVER = "org.freedesktop.DBus"
_UNIQUE = re.compile(r":\d+\.\d+")
_HEAD = "cBBBIII"


def rewritten(msg: Message, names: Mapping[str, str]) -> bytes:
    """The message with new unique names in place of old ones."""
    big = msg.big_endian
    data = msg.wire()
    body = msg.body()
    order = ">" if big else "<"
    head = Struct(order + _HEAD)
    mark, kind, flags, version, _, serial, length = head.unpack_from(data)
    listed = wire.unmarshal(b"yyyyuua(yv)", data[: head.size + length], big)[6]
    fields = []
    for code, (signature, value) in listed:
        if code == _DESTINATION:
            fields.append((code, (signature, names.get(value, value))))
            if value == _DRIVER:
                body = _arguments(msg, body, names)
        elif code != _SENDER:
            fields.append((code, (signature, value)))
    # The array is aligned for offset 12 of a message as well as for offset 4 of this body.
    array = wire.marshal("a(yv)", (fields,), big)
    listing = array[8:]
    start = head.pack(mark, kind, flags, version, len(body), serial, len(listing))
    return start + listing + bytes(-len(listing) & 7) + body


def _arguments(msg: Message, body: bytes, names: Mapping[str, str]) -> bytes:
    values = wire.unmarshal(msg.signature, body, msg.big_endian)
    changed = [_renamed(value, names) for value in values]
    if changed == values:
        return body
    return wire.marshal(msg.signature.decode(), changed, msg.big_endian)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _UNIQUE.sub(lambda found: names.get(found[0], found[0]), value)
    return value
