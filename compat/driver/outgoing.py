# cython: infer_types=True
"""Outgoing: the driver's replies, errors and signals, written from prepared pieces.

Invariant: what `write()` leaves in `buffer` is one whole message, valid and little-endian, its
header fields in the order in which dbus-daemon writes them. Each piece starts at a multiple of 8
and is padded to one; only the last, `tail()`, is not, because the header's length counts it so.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.mem import Buffer

if not cython.compiled:
    from jitney.broker.mem import copy, of_bytes, store32, zero

_SENDER = b"\7\1s\0\x14\0\0\0org.freedesktop.DBus\0"
_tails: dict[str, bytes] = {}
_error_fields: dict[str, bytes] = {}


def padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % 8)


def text_field(code: int, kind: bytes, text: bytes) -> bytes:
    """A header field with a string (``s``) or an object path (``o``), padded."""
    size = len(text).to_bytes(4, "little")
    return padded(bytes((code, 1)) + kind + b"\0" + size + text + b"\0")


def tail(signature: str) -> bytes:
    """SIGNATURE, where there is one, and SENDER."""
    found = _tails.get(signature)
    if found is None:
        found = _SENDER
        if signature:
            text = signature.encode()
            found = padded(b"\x08\1g\0" + bytes((len(text),)) + text + b"\0") + _SENDER
        _tails[signature] = found
    return found


def error_field(name: str) -> bytes:
    """ERROR_NAME; the names are our own, so that there is an end to them."""
    found = _error_fields.get(name)
    if found is None:
        found = _error_fields[name] = text_field(4, b"s", name.encode())
    return found


class Outgoing:
    """The message being written; `buffer` holds it until the next one is."""

    def __init__(self) -> None:
        self.buffer = Buffer()

    def write(
        self,
        kind: int,
        serial: int,
        first: bytes,
        destination: bytes | None,
        second: bytes,
        reply_serial: int,
        end: bytes,
        body: bytes,
    ) -> None:
        """`first` are the fields before DESTINATION, `second` those behind it, `end` a `tail()`.

        reply_serial 0: none. No reply to it is expected, as to nothing that the bus sends."""
        out = self.buffer
        out.head = out.end = 0
        n_first = len(first)
        n_dest = len(destination) if destination is not None else 0
        n_second = len(second)
        n_end = len(end)
        n_body = len(body)
        out.reserve(16 + n_first + n_dest + 16 + n_second + 8 + n_end + 8 + n_body)
        p = out.p
        # "l", the type, NO_REPLY_EXPECTED, protocol 1; the same in one word for each field below.
        store32(p, 0, 0x0101006C + (kind << 8), False)
        store32(p, 4, n_body, False)
        store32(p, 8, serial, False)
        pos = 16
        if n_first:
            copy(p, pos, of_bytes(first), 0, n_first)
            pos += n_first
        if destination is not None:
            store32(p, pos, 0x00730106, False)
            store32(p, pos + 4, n_dest, False)
            pos += 8
            copy(p, pos, of_bytes(destination), 0, n_dest)
            pos += n_dest
            n_dest = 8 - (pos & 7)
            zero(p, pos, n_dest)
            pos += n_dest
        if n_second:
            copy(p, pos, of_bytes(second), 0, n_second)
            pos += n_second
        if reply_serial:
            store32(p, pos, 0x00750105, False)
            store32(p, pos + 4, reply_serial, False)
            pos += 8
        copy(p, pos, of_bytes(end), 0, n_end)
        pos += n_end
        store32(p, 12, pos - 16, False)
        n_end = -pos & 7
        zero(p, pos, n_end)
        pos += n_end
        copy(p, pos, of_bytes(body), 0, n_body)
        out.end = pos + n_body
