"""What fuzzing has found, as small as it gets: each case by the name of what was wrong.

Invariant: a case stays for ever, and each raised in the target that it is for before it was fixed.
"""

from __future__ import annotations

import errno
import struct

import pytest
from fuzz.targets import TARGETS
from kdbuskit import World, u64

from jitney.broker.kdbus import constants as c
from jitney.compat import process


def block(kind: int, body: bytes) -> bytes:
    """One block of a pcapng file."""
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))

DIGITS = b"9" * 5000

FOUND = [
    # struct.error and IndexError, of which `jitney replay` knew nothing
    ("recording", "pcapng that ends within its mark", bytes.fromhex("0a0d0d0a0d0d0a0a")),
    ("recording", "pcapng packet without lengths", SECTION + block(6, bytes(8))),
    (
        "recording",
        "pcapng option behind the end of its block",
        SECTION + block(1, b"\xe7" + bytes(7) + struct.pack("<HH", 9, 1)),
    ),
]
FOUND += [
    # ValueError out of int(), so that a broken file in an <includedir> was not just skipped
    ("busconfig", f"number of 5000 digits, {what}", b"<busconfig>" + text + b"</busconfig>")
    for what, text in {
        "as a limit": b'<limit name="max_message_size">' + DIGITS + b"</limit>",
        "as a user": b'<policy user="' + DIGITS + b'"/>',
        "of descriptors": b'<policy context="default"><allow send_type="signal" min_fds="'
        + DIGITS
        + b'"/></policy>',
    }.items()
]


@pytest.mark.parametrize(
    ("name", "data"), [pytest.param(name, data, id=what) for name, what, data in FOUND]
)
def test_found(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_a_pool_larger_than_memory() -> None:
    """MemoryError out of a HELLO; fronts bring memory of their own, but this is what others get."""
    fields = u64(c.ATTACH_ALL, c.ATTACH_ALL, 0, 0, 1 << 62)
    client = World().open()
    assert client.error("HELLO", c.HELLO_ACCEPT_FD, fields) == errno.ENOMEM
    client.hello()


def test_a_user_of_5000_digits() -> None:
    """ValueError out of int() where the daemon becomes another user."""
    assert process.find_user("9" * 5000) is None
