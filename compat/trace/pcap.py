"""Pcap: whole messages in the file format of tcpdump, link type DBUS, as dbus-monitor writes it.

Invariant: a packet is one message as its receivers got it, with the true SENDER in it. What is
written here is read here, and what dbus-monitor and busctl write as well, be it pcapng.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, NamedTuple

from jitney.broker.message import Message, clean
from jitney.broker.queue import sender_field

from . import pcapng
from .records import DRIVER, PASSED, Record

LINKTYPE_DBUS = 231
MAX_PACKET = 134217728

_MAGIC, _MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
_FILE = "IHHiIII"
_PACKET = "IIII"


class Packet(NamedTuple):
    """When it passed (ns since 1970), the message, and how long it was before it was cut."""

    time: int
    data: bytes
    size: int


class Pcap:
    """Writes one file."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.count = 0
        self.head = Struct("<" + _PACKET)
        out.write(Struct("<" + _FILE).pack(_MAGIC, 2, 4, 0, 0, MAX_PACKET, LINKTYPE_DBUS))

    def record(self, record: Record, call: Record | None) -> None:
        if record.kind != PASSED or not record.payload:
            return
        data, size = record.payload, record.size
        if not record.cut & 2:
            data = with_sender(data, record.sender)
            size = len(data)
        seconds, rest = divmod(record.time, 1_000_000_000)
        self.out.write(self.head.pack(seconds, rest // 1000, len(data), size) + data)
        self.count += 1

    def lost(self, count: int) -> None:
        pass  # there is no place for it; the summary says it

    def flush(self) -> None:
        self.out.flush()

    close = flush


def with_sender(data: bytes, sender: str) -> bytes:
    """The message as it is passed on: without fields nobody knows, and with its sender's name."""
    if sender == DRIVER:
        return data
    msg = Message()
    if not msg.load(data):
        return data
    head = bytearray(clean(msg))
    head += bytes(-len(head) & 7)
    head += sender_field(sender.encode(), msg.big_endian)
    head[12:16] = (len(head) - 16).to_bytes(4, "big" if msg.big_endian else "little")
    head += bytes(-len(head) & 7)
    return bytes(head) + msg.body()


def read(file: BinaryIO) -> Iterator[Packet]:
    """The packets of a file. Raises ValueError where it is none, or of something else."""
    start = file.read(4)
    if start == pcapng.MAGIC:
        file.seek(-4, os.SEEK_CUR)
        for time, data, size in pcapng.read(file, LINKTYPE_DBUS):
            yield Packet(time, data, size)
        return
    start += file.read(20)
    for order in "<>":
        if len(start) == 24 and Struct(order + "I").unpack_from(start)[0] in (_MAGIC, _MAGIC_NS):
            break
    else:
        raise ValueError("this is no pcap file")
    magic, *_, link = Struct(order + _FILE).unpack(start)
    if link & 0xFFFF != LINKTYPE_DBUS:
        raise ValueError(f"this pcap file holds no D-Bus messages (link type {link})")
    unit = 1 if magic == _MAGIC_NS else 1000
    head = Struct(order + _PACKET)
    while about := file.read(head.size):
        if len(about) < head.size:
            return  # whoever wrote it was interrupted
        seconds, rest, kept, size = head.unpack(about)
        if kept > MAX_PACKET:
            raise ValueError("this pcap file is broken")
        data = file.read(kept)
        if len(data) < kept:
            return
        yield Packet(seconds * 1_000_000_000 + rest * unit, data, size)
