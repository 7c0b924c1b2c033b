"""Ordinary: the messages that most messages are, read without the detour over tables of forms.

Invariant: what `read()` returns is what `request` would have made of the same bytes. It takes only
messages about which nothing is special: to one receiver, no signal, no descriptors, payload to be
copied, and nothing about them that might be refused for its form. All others are left to `request`.

Where the payload is, is told to the front's `Payload`, which knows what is there.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.kdbus.message import Message

if not cython.compiled:
    from jitney.broker.kdbus.bus import Bus
    from jitney.broker.kdbus.loads import get64

_VEC_MAX = 2 * 1024 * 1024
_ANYBODY = (1 << 64) - 1
_SIGN = 1 << 63


class Payload:
    """Takes the parts of a message, one after the other."""

    def take(self, message: Message, where: int, size: int) -> bool:
        """Adds it to the message; False where it cannot."""
        raise NotImplementedError


def read(
    bus: Bus, sender: int, buffer: bytearray, at: int, n: int, sync: bool, payload: Payload
) -> Message | None:
    """The message in `buffer[at:at + n]`; None where it is none for us."""
    if n < 64:
        return None
    size = get64(buffer, at)
    flags = get64(buffer, at + 8)
    dst = get64(buffer, at + 24)
    source = get64(buffer, at + 32)
    timeout = get64(buffer, at + 56)
    if (
        size < 64 or size > n or flags > 3 or dst == _ANYBODY
        or (source and source != sender) or not get64(buffer, at + 40)
    ):  # fmt: skip
        return None
    if flags & 1:
        if not timeout:
            return None
    elif sync:
        return None
    message = Message.__new__(Message)
    message.begin(dst, flags, get64(buffer, at + 48), timeout)
    message.payload_type = get64(buffer, at + 40)
    priority = get64(buffer, at + 16)
    message.priority = priority if priority < _SIGN else priority - _ANYBODY - 1
    total = 0
    end = at + size
    item = at + 64
    while item < end:
        if end - item < 16:
            return None
        length = get64(buffer, item)
        if length < 16 or length > end - item:
            return None
        kind = get64(buffer, item + 8)
        if kind == 2:
            if length != 32:
                return None
            room = get64(buffer, item + 16)
            where = get64(buffer, item + 24)
            if not room or room > _VEC_MAX or not where:
                return None
            total += room
            if total > _VEC_MAX or not payload.take(message, where, room):
                return None
        elif kind == 10:
            # What is in the registry is a name, so it needs no check.
            if message.dst_name is not None or length < 17 or buffer[item + length - 1]:
                return None
            name = bytes(buffer[item + 16 : item + length - 1])
            if bus.core.names.get(name) is None:
                return None
            message.add_name(name)
        else:
            return None
        item += (length + 7) & ~7
    if item != at + ((size + 7) & ~7):
        return None
    if not dst and message.dst_name is None:
        return None
    return message
