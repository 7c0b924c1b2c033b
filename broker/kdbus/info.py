"""Who is on the bus: LIST, CONN_INFO and BUS_CREATOR_INFO.

Invariant: what a connection may not see is not there, with the same errno as what does not exist.
Answers are written into the owner's half of the asker's pool, which has to free them.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

from . import constants as c
from . import metadata
from .errors import KdbusError
from .metadata import Caller
from .validity import attach_flags


def _info(number: int, flags: int, items: list[bytes]) -> bytes:
    size = 24 + sum(map(len, items))
    return struct.pack("<3Q", size, number, flags) + b"".join(items)


def _store(conn: Any, parts: list[bytes]) -> tuple[int, int]:
    """(offset, size), all of it published."""
    size = sum(map(len, parts))
    if not size:
        return conn.pool.empty, 0
    part = conn.pool.store(parts, size)
    published: tuple[int, int] = conn.pool.publish(part)
    conn.pool.release(part)
    return published


def listing(conn: Any, flags: int, caller: Caller) -> tuple[int, int]:
    """LIST: (offset, size) of an array of infos."""
    out = []
    bus = conn.bus
    others = list(bus.core.connections.values())
    for core in others:
        if core.monitor:
            continue
        other = bus.conn_of(core)
        number = core.id
        kind = other.flags if other is not None else 0
        added = False
        for name, held in bus.names.held(core, other.activates if other is not None else None):
            if held & c.NAME_ACTIVATOR:
                asked = flags & c.LIST_ACTIVATORS
            elif held & c.NAME_IN_QUEUE:
                asked = flags & c.LIST_QUEUED
            else:
                asked = flags & c.LIST_NAMES
            if asked:
                added = True
                if conn.may_see_name(caller.creds, name):
                    out.append(_info(number, kind, metadata.names_items([(name, held)])))
        if not added and flags & c.LIST_UNIQUE:
            out.append(_info(number, kind, []))
    return _store(conn, out)


def connection(
    conn: Any, number: int, name: bytes | None, attach: int, caller: Caller
) -> tuple[int, int]:
    """CONN_INFO by name or id: ESRCH, ENXIO, EINVAL."""
    attach = attach_flags(attach)
    bus = conn.bus
    whom: Any
    if name is not None:
        entry = bus.core.names.get(name)
        whom = None
        if entry is not None:
            whom = bus.whom(entry.owner) if entry.owner is not None else entry.activator
        if whom is None or not conn.may_see_name(caller.creds, name) or number not in (0, whom.id):
            raise KdbusError(errno.ESRCH)
    elif number:
        whom = bus.connections.get(number)
        if whom is None and number in bus.core.connections:
            whom = bus.whom(bus.core.connections[number])
        if whom is None or not conn.may_see(caller.creds, whom):
            raise KdbusError(errno.ENXIO)
    else:
        raise KdbusError(errno.EINVAL)
    attach &= whom.send_flags
    items = metadata.process_items(whom.facts, attach, conn.namespaces)
    if attach & c.ATTACH_NAMES:
        items += metadata.names_items(whom.owned_flags())
    if attach & c.ATTACH_DESCRIPTION and whom.description is not None:
        items.append(metadata.description_item(whom.description))
    return _store(conn, [_info(whom.id, whom.flags, items)])


def creator(conn: Any, attach: int) -> tuple[int, int]:
    """BUS_CREATOR_INFO."""
    bus = conn.bus
    attach = attach_flags(attach) & bus.attach
    items = [metadata.item(c.ITEM_MAKE_NAME, bus.name + b"\0")]
    items += metadata.process_items(bus.creator_facts, attach, conn.namespaces)
    return _store(conn, [_info(bus.id, bus.flags, items)])


def bloom(conn: Any) -> tuple[int, int]:
    """What HELLO leaves in the pool: the bus's bloom parameters."""
    bus = conn.bus
    data = struct.pack("<2Q", bus.bloom_size, bus.bloom_hashes)
    return _store(conn, [metadata.item(c.ITEM_BLOOM_PARAMETER, data)])
