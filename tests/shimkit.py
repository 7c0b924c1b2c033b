"""Helpers for programs that are preloaded: what was refused, which descriptors there are, items.

Invariant: nothing here knows of sockets; the programs are in `kdbus/shimclient.py`.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable
from pathlib import Path

from kdbuskit import Got, item
from kdbusmount import Bus, Errno, Peer

from jitney.broker.kdbus import constants as c


def refused(number: int, what: Callable[..., object], *arguments: object) -> None:
    found = 0
    try:
        what(*arguments)
    except (OSError, Errno) as error:
        found = error.errno or 0
    assert found == number, f"{errno.errorcode.get(found)}, not {errno.errorcode[number]}"


def descriptors() -> set[int]:
    return {
        number
        for number in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{number}")
    }


def readable(peer: Peer, seconds: float = 0.0) -> int:
    poll = select.poll()
    poll.register(peer.fd, select.POLLIN)
    found = poll.poll(seconds * 1000)
    return found[0][1] if found else 0


def fds_item(*numbers: int) -> bytes:
    return item(c.ITEM_FDS, struct.pack(f"<{len(numbers)}i", *numbers))


def numbers_in(got: Got) -> list[int]:
    data = got.get(c.ITEM_FDS) or b""
    return list(struct.unpack(f"<{len(data) // 4}i", data))


def pair(root: Path) -> tuple[Bus, Peer, Peer]:
    bus = Bus(root)
    return bus, Peer(bus.path), Peer(bus.path)
