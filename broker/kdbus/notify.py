"""Notifications: what the bus itself has to say about ids, names and calls without an answer.

Invariant: a notification is made while something changes and sent when it has changed (`flush()`
at the end of each command), in the order in which things happened. Each is one item, no payload.
"""

from __future__ import annotations

import struct

from . import constants as c
from .message import Message


def id_change(kind: int, number: int, flags: int) -> Message:
    """ID_ADD or ID_REMOVE."""
    message = Message(c.DST_BROADCAST, c.SIGNAL)
    message.kind = kind
    # The one that a rule may ask for; the other fits whatever is asked.
    if kind == c.ITEM_ID_ADD:
        message.new_id = number
    else:
        message.old_id = number
    message.add_raw(kind, struct.pack("<2Q", number, flags))
    return message


def name_change(
    kind: int, name: bytes, old_id: int, old_flags: int, new_id: int, new_flags: int
) -> Message:
    """NAME_ADD, NAME_REMOVE or NAME_CHANGE."""
    message = Message(c.DST_BROADCAST, c.SIGNAL)
    message.kind = kind
    message.name = name
    message.old_id, message.new_id = old_id, new_id
    data = struct.pack("<4Q", old_id, old_flags, new_id, new_flags) + name + b"\0"
    message.add_raw(kind, data)
    return message


def no_answer(kind: int, to: int, cookie: int) -> Message:
    """REPLY_TIMEOUT or REPLY_DEAD, for the connection that waits."""
    message = Message(to, 0, timeout=cookie)
    message.kind = kind
    message.add_raw(kind, b"")
    return message
