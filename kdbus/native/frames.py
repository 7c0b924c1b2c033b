"""Frames: the format of docs/native.md as numbers, and answers as bytes.

Invariant: these are facts of the format; nothing here knows a socket or what a command does.
"""

from __future__ import annotations

import struct

from .. import uapi

VERSION = 1
FRAME_MAX = 64 * 1024
FDS_MAX = 253
FREES_MAX = 1024
CREDIT_MAX = 1024
SOCKETS_MAX = 256
OUTBOX = 1 << 63

REQUEST = struct.Struct("<IHHIIII")
"""length, op, flags, serial, frees, credit, tid"""
ANSWER = struct.Struct("<IHHIIII")
"""length, op, 0, serial, error, descriptors, 0"""
HEAD = 24

QUIET = 1
ANSWERED = 0x8000

OPEN, ATTACH, OUTBOX_OP, NUMBERS = 0x100, 0x101, 0x102, 0x103
WOKEN, CANCEL, GRANT, POOL = 0x104, 0x105, 0x106, 0x107
CHANNEL, SETTLE = 0x108, 0x109
WAKE, MESSAGE = 0x8200, 0x8201

PAIR = struct.Struct("<II")
"""OPEN: a version and 0; CANCEL: a serial and 0."""
MESSAGE_BODY = struct.Struct("<4Q")
"""offset, size, return flags, lost"""

FORMS = {form.ioctl & 0xFF: form for form in uapi.FORMS}
"""kdbus's commands by the number in their ioctl."""

WAKE_FRAME = ANSWER.pack(HEAD, WAKE, 0, 0, 0, 0, 0)


def answer(op: int, serial: int, error: int, fds: int = 0, body: bytes | bytearray = b"") -> bytes:
    return ANSWER.pack(HEAD + len(body), op | ANSWERED, 0, serial, error, fds, 0) + body


def message(offset: int, size: int, flags: int, lost: int, fds: int) -> bytes:
    head = ANSWER.pack(HEAD + MESSAGE_BODY.size, MESSAGE, 0, 0, 0, fds, 0)
    return head + MESSAGE_BODY.pack(offset, size, flags, lost)
