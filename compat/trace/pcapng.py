"""Pcapng: the newer file format of captures, which `busctl capture` writes; for reading alone.

Invariant: the packets of link type DBUS come in the order of the file, whatever other blocks and
interfaces are in it; a file that breaks off ends with its last whole block.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, NamedTuple

MAGIC = b"\x0a\x0d\x0d\x0a"

_ORDER = 0x1A2B3C4D
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_LEAST = {_INTERFACE: 8, _PACKET: 20}
_RESOLUTION = 9
_LONGEST = 1 << 28


class _Interface(NamedTuple):
    link: int
    units: int
    """In a second."""


def read(file: BinaryIO, link: int) -> Iterator[tuple[int, bytes, int]]:
    """Time (ns), bytes and original length of each packet. ValueError where the file is broken."""
    order = "<"
    interfaces: list[_Interface] = []
    while len(start := file.read(8)) == 8:
        if start[:4] == MAGIC:
            mark = file.read(4)
            if len(mark) < 4:
                return
            order = "<" if Struct("<I").unpack(mark)[0] == _ORDER else ">"
            kind, size = Struct(order + "II").unpack(start)
            body = mark + file.read(_checked(size) - 16)
            interfaces = []
        else:
            kind, size = Struct(order + "II").unpack(start)
            body = file.read(_checked(size) - 12)
        if len(body) != size - 12 or len(file.read(4)) != 4:
            return
        if len(body) < _LEAST.get(kind, 0):
            raise ValueError("this pcapng file is broken")
        if kind == _INTERFACE:
            interfaces.append(_interface(body, order))
        elif kind == _PACKET:
            number, high, low, kept, size = Struct(order + "IIIII").unpack_from(body)
            if number >= len(interfaces):
                raise ValueError("this pcapng file is broken")
            if interfaces[number].link == link:
                time = (high << 32 | low) * 1_000_000_000 // interfaces[number].units
                yield time, body[20 : 20 + kept], size


def _checked(size: int) -> int:
    if size < 16 or size > _LONGEST or size % 4:
        raise ValueError("this pcapng file is broken")
    return size


def _interface(body: bytes, order: str) -> _Interface:
    link = Struct(order + "H").unpack_from(body)[0]
    units = 1_000_000
    option = Struct(order + "HH")
    pos = 8
    while pos + 4 <= len(body):
        code, size = option.unpack_from(body, pos)
        if code == 0 or pos + 4 + size > len(body):
            break
        if code == _RESOLUTION and size == 1:
            exponent = body[pos + 4]
            units = 2 ** (exponent & 0x7F) if exponent & 0x80 else 10**exponent
        pos += 4 + size + (-size & 3)
    return _Interface(link, units)
