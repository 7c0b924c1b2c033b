"""Messages of the load, prepared once.

Invariant: all are little-endian, valid, and have their serial in bytes 8 to 12; `reply()` says
where its reply serial stands. That is all that the load changes before it sends one again.
"""

from __future__ import annotations

import os
import struct

DRIVER = b"org.freedesktop.DBus"
DRIVER_PATH = b"/org/freedesktop/DBus"
PATH = b"/org/example/Load"
INTERFACE = b"org.example.Load"

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY = 1


def field(code: int, kind: bytes, value: bytes) -> bytes:
    """One header field; `value` is text, or a number's four bytes."""
    head = bytes([code, 1]) + kind + b"\0"
    if kind == b"u":
        return head + value
    size = bytes([len(value)]) if kind == b"g" else struct.pack("<I", len(value))
    return head + size + value + b"\0"


def message(
    kind: int, fields: list[bytes], body: bytes = b"", serial: int = 1, flags: int = 0
) -> bytes:
    """A whole message."""
    joined = b""
    for part in fields:
        joined += bytes(-len(joined) % 8) + part
    head = struct.pack("<cBBBIII", b"l", kind, flags, 1, len(body), serial, len(joined))
    return head + joined + bytes(-len(joined) % 8) + body


def call(
    dest: bytes,
    member: bytes,
    signature: bytes = b"",
    body: bytes = b"",
    *,
    serial: int = 1,
    flags: int = 0,
    path: bytes = PATH,
    interface: bytes = INTERFACE,
    n_fds: int = 0,
) -> bytes:
    """A method call."""
    fields = [
        field(1, b"o", path),
        field(2, b"s", interface),
        field(3, b"s", member),
        field(6, b"s", dest),
    ]
    return message(CALL, fields + _tail(signature, n_fds), body, serial, flags)


def reply(dest: bytes, signature: bytes = b"", body: bytes = b"") -> tuple[bytes, int]:
    """A method return, and where in it the reply serial stands."""
    fields = [field(5, b"u", bytes(4)), field(6, b"s", dest)]
    return message(RETURN, fields + _tail(signature, 0), body), 20


def signal(
    member: bytes,
    signature: bytes = b"",
    body: bytes = b"",
    *,
    path: bytes = PATH,
    interface: bytes = INTERFACE,
) -> bytes:
    """A broadcast signal."""
    fields = [field(1, b"o", path), field(2, b"s", interface), field(3, b"s", member)]
    return message(SIGNAL, fields + _tail(signature, 0), body)


def _tail(signature: bytes, n_fds: int) -> list[bytes]:
    fields = [field(8, b"g", signature)] if signature else []
    return [*fields, field(9, b"u", struct.pack("<I", n_fds))] if n_fds else fields


def string(text: bytes) -> bytes:
    """The body of signature ``s``."""
    return struct.pack("<I", len(text)) + text + b"\0"


def byte_array(size: int, start: int = 0) -> bytes:
    """The body of signature ``ay``: `size` bytes of a pattern in which no page is like another."""
    words = struct.pack("<256I", *(0x9E3779B1 * (i + start + 1) & 0xFFFFFFFF for i in range(256)))
    pages = [struct.pack("<I", page) + words[4:] for page in range(size // 1024 + 1)]
    return struct.pack("<I", size) + b"".join(pages)[:size]


def driver_call(member: bytes, signature: bytes = b"", body: bytes = b"", serial: int = 1) -> bytes:
    """A call to the bus itself."""
    return call(DRIVER, member, signature, body, serial=serial, path=DRIVER_PATH, interface=DRIVER)


def hello() -> bytes:
    """What every connection says first; its serial is 1."""
    return driver_call(b"Hello")


def add_match(rule: bytes, serial: int) -> bytes:
    return driver_call(b"AddMatch", b"s", string(rule), serial)


def auth_lines(with_fds: bool, uid: int | None = None) -> bytes:
    """All that a client says before its first message, if it waits for no answer."""
    identity = str(os.getuid() if uid is None else uid).encode().hex().encode()
    negotiate = b"NEGOTIATE_UNIX_FD\r\n" if with_fds else b""
    return b"\0AUTH EXTERNAL " + identity + b"\r\n" + negotiate + b"BEGIN\r\n"


def parse_string_reply(data: bytes, serial: int) -> tuple[bytes | None, bytes]:
    """The string in the reply to call `serial`, and what follows it; (None, data) if the reply is
    not all here."""
    pos = 0
    while len(data) - pos >= 16:
        body, _, fields = struct.unpack_from("<III", data, pos + 4)
        end = pos + 16 + (fields + 7 & ~7) + body
        if end > len(data):
            break
        head = data[pos : end - body]
        if data[pos + 1] == RETURN and b"\x05\x01u\0" + struct.pack("<I", serial) in head:
            return data[end - body + 4 : end - 1], data[end:]
        if data[pos + 1] == ERROR:
            raise ValueError(f"an error in place of a reply: {data[pos:end]!r}")
        pos = end
    return None, data
