"""Classic messages for the tests of kdbus's forms, as bytes and as the core sees them.

Invariant: `core()` gives only what the core's parser accepts.
"""

from __future__ import annotations

import struct
from typing import Any

from jitney.broker.message import Message
from jitney.compat import wire

_FIELDS = {
    "path": (1, "o"), "interface": (2, "s"), "member": (3, "s"), "destination": (6, "s"),
    "error_name": (4, "s"), "reply_serial": (5, "u"), "signature": (8, "g"), "n_fds": (9, "u"),
}  # fmt: skip


def raw(said: dict[str, Any], big: bool = False) -> bytes:
    """The message that `dbus_values.messages()` describes."""
    body = wire.marshal(said["signature"], said["values"], big)
    fields = [(code, (kind, said[key])) for key, (code, kind) in _FIELDS.items() if said[key]]
    order = ">" if big else "<"
    start = b"B" if big else b"l"
    start += bytes((said["type"], said["flags"], 1))
    start += struct.pack(order + "II", len(body), said["serial"])
    head = wire.marshal("yyyyuua(yv)", [*start[:4], len(body), said["serial"], fields], big)
    assert head[:12] == start
    return head + bytes(-len(head) % 8) + body


def core(data: bytes) -> Message:
    msg = Message()
    assert msg.load(data), data
    return msg
