"""Server addresses: `unix:path=/run/bus,guid=...;tcp:host=localhost,port=0`.

Invariant: `parse()` accepts what libdbus accepts and nothing else, and
`parse(f"m:k={escape(v)}")` gives `v` back for every non-empty string without a NUL.

D-Bus Specification, "Server Addresses". Values are bytes in the specification; here they are
str with the file system's encoding, as all paths in Python are, so any byte survives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .errors import BAD_ADDRESS, DBusError

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/\\*.")
"""Bytes that need no escaping. The list of the specification, and libdbus's backslash."""

_HEX = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Address:
    """One entry of an address: the transport, and its parameters unescaped."""

    method: str
    params: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> str | None:
        """The parameter of this name, None if there is none."""
        return self.params.get(key)


def parse(text: str) -> list[Address]:
    """The entries of an address, in their order; at least one.

    Of a parameter given twice the first one counts. Raises DBusError(BadAddress).
    """
    if not text:
        raise bad("Empty address ''")
    entries = text.split(";")
    if not entries[-1]:
        entries.pop()  # one ; may end the list
    return [_entry(entry) for entry in entries]


def escape(value: str) -> str:
    """The value as it may stand behind the = of a parameter."""
    return "".join(chr(b) if b in _PLAIN else f"%{b:02x}" for b in os.fsencode(value))


def unescape(text: str) -> str:
    """The value that `escape()` made `text` of. Raises DBusError(BadAddress)."""
    raw = os.fsencode(text)
    value = bytearray()
    at = 0
    while at < len(raw):
        byte = raw[at]
        at += 1
        if byte in _PLAIN:
            value.append(byte)
            continue
        if byte != 0x25:
            shown = chr(byte) if byte < 0x80 else os.fsdecode(raw[at - 1 : at])
            raise bad(f"In D-Bus address, character '{shown}' should have been escaped")
        digits = raw[at : at + 2]
        at += 2
        if len(digits) < 2:
            raise bad("In D-Bus address, percent character was not followed by two hex digits")
        if not _HEX.issuperset(digits):
            raise bad(
                "In D-Bus address, percent character was followed by characters other "
                "than hex digits"
            )
        value.append(int(digits, 16))
    # A C string ends there, and so does every path, name and port we could pass it to.
    return os.fsdecode(bytes(value).split(b"\0", 1)[0])


def bad(text: str) -> DBusError:
    return DBusError(BAD_ADDRESS, text)


def _entry(text: str) -> Address:
    method, colon, rest = text.partition(":")
    if not colon:
        raise bad("Address does not contain a colon")
    params: dict[str, str] = {}
    pieces = rest.split(",")
    if not pieces[-1]:
        pieces.pop()
    for piece in pieces:
        key, _, value = piece.partition("=")
        if not key or not value:
            raise bad("'=' character not found or has no value following it")
        params.setdefault(key, unescape(value))
    return Address(method, params)
