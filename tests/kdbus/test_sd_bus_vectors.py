"""Bytes that sd-bus itself made, of messages that are described here.

Invariant: ours are the same. They come from the code of systemd v226 (its remarshalling from
version 1 to 2, and the filter that it makes for a kdbus message), run once outside of this tree.
"""

from __future__ import annotations

from typing import Any

import pytest
from classic_messages import core

from jitney.compat import wire
from jitney.kdbus import bloom
from jitney.kdbus.transcode import Dbus2Message, from_classic, lay, parse, to_classic

CALL = (
    "6c01000200000000070000000000000001000000000000002f612f6200006f00030000000000000044"
    "6f0000730000000200000000000000612e6200007300000600000000000000632e640000730f1d2e3e"
    "0000000000006e00000000000000feffffff0069020071000000000000000100000000000000020000"
    "00000000000028797429020f2e616263780000020333300028617b73767d617961732952"
)
RETURN = (
    "6c02010200000000020000000000000005000000000000000700000000000000007400000000000006"
    "000000000000003a312e340000731227000000000000000000282939"
)
SIGNAL = (
    "6c04010200000000010000000000000001000000000000002f612f6200006f00020000000000000061"
    "2e62000073000003000000000000004d0000730f1e2c00782e79007a000400287373293f"
)
STRING_FILTER = (
    "418a2118090801001201006160128150150400401848000809010100026100201a011000080c300391"
    "02400200020ac854100800004428108920a12401008220"
)
ARRAY_FILTER = (
    "408000002800090002000040401301501004040008090100000001100042002012012000000c340101"
    "104000000200c814100c00404002120120822400008000"
)


def signal(path: bytes, signature: str, values: list[Any]) -> Dbus2Message:
    data = wire.message(
        wire.SIGNAL,
        1,
        flags=1,
        path=path,
        interface=b"a.b",
        member=b"M",
        sender=None,
        signature=signature,
        body=wire.marshal(signature, values),
    )
    return from_classic(core(data), big=False)


def test_a_call() -> None:
    values = [{"n": ("i", -2), "q": ("(yt)", (1, 2))}, b"abc", ["x", ""]]
    data = wire.message(
        wire.CALL,
        7,
        path=b"/a/b",
        interface=b"a.b",
        member=b"Do",
        destination=b"c.d",
        sender=None,
        signature="a{sv}ayas",
        body=wire.marshal("a{sv}ayas", values),
    )
    assert b"".join(lay(from_classic(core(data), big=False))).hex() == CALL
    assert to_classic(parse(bytes.fromhex(CALL))) == data


def test_a_reply() -> None:
    data = wire.message(2, 2, flags=1, reply_serial=7, destination=b":1.4", sender=None)
    assert b"".join(lay(from_classic(core(data), big=False))).hex() == RETURN
    assert to_classic(parse(bytes.fromhex(RETURN))) == data


def test_a_signal() -> None:
    msg = signal(b"/a/b", "ss", ["x.y", "z"])
    assert b"".join(lay(msg)).hex() == SIGNAL
    assert parse(bytes.fromhex(SIGNAL)) == msg


@pytest.mark.parametrize(
    ("path", "signature", "values", "kept", "expected"),
    [
        (b"/a/b", "ss", ["x.y", "z"], 1, STRING_FILTER),
        (b"/a", "asus", [["one", "two"], 5, "later"], 1, ARRAY_FILTER),
    ],
)
def test_filters(path: bytes, signature: str, values: list[Any], kept: int, expected: str) -> None:
    # It leaves the loop at the first plain string and at what it cannot add; we go on.
    types = wire.split_signature(signature)[:kept]
    told = signal(path, "".join(types), values[:kept])
    theirs = bytes.fromhex(expected)
    assert bloom.filter_of(told) == theirs
    assert bloom.passes(theirs, bloom.filter_of(signal(path, signature, values)))
